"""Configuration and weights of a checkpoint: loaded whole or refused, never half loaded.

transformers fills what a checkpoint lacks with random numbers and says so in a log line; what is then measured is noise
that looks like a result. Here a missing, mismatched, truncated or non-finite tensor is an error that names it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from sinkscope import registry
from sinkscope.errors import ModelError, UnsupportedModelError, did_you_mean
from sinkscope.models.locks import FairLock

ATTENTION_FREE = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
"""Model types without any attention. Some name their mixing layer "attention", so the name tells nothing."""

_NUMBER = re.compile(r"\.\d+\.")
_BLOCK = re.compile(r"(.*\.\d+)\.")

SHOWN = 3
"""How many tensor names an error shows before it counts the rest."""


_loading = FairLock()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Give transformers to one thread at a time while it loads, with its log lines and progress bars silenced.

    What matters in those lines is raised as an error here. The lock is there because ``from_pretrained`` puts a
    function that does nothing in the place of ``PreTrainedModel.tie_weights`` until it is done: of two threads that
    load at the same time the later may put that function "back", and no model of the process is tied from then on.
    """
    with _loading.held():
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


def read_config(name: str, local: bool) -> PreTrainedConfig:
    """Read the configuration. Code that comes with a checkpoint is never run.

    Raises:
        ModelError: it cannot be read, or cannot be reached.
        UnsupportedModelError: the model type is unknown to transformers, or has no attention.
    """
    raw = _json_object(Path(name) / "config.json") if local else {}
    if local and not isinstance(raw.get("model_type"), str):
        raise ModelError(f"{name}/config.json names no model_type. Use a folder that model.save_pretrained wrote.")
    if raw.get("model_type") in ATTENTION_FREE:
        raise _attention_free(str(raw["model_type"]))
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except (OSError, HFValidationError) as error:
        raise unreachable(name, error) from None
    except Exception as error:  # whatever a configuration raises of numbers that do not fit each other
        kind = raw.get("model_type", name)
        if kind in CONFIG_MAPPING or not isinstance(error, ValueError | KeyError):
            raise _malformed(name, error) from None
        code = (
            " Code that comes with a checkpoint is not run." if "custom code" in str(error) or "auto_map" in raw else ""
        )
        raise UnsupportedModelError(
            f"load_model({name!r}): transformers {transformers.__version__} does not know the model type {kind!r}."
            f"{code} Update transformers, or build the model yourself and pass it to load_model."
        ) from None
    check_config(config)
    return config


def _json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}). Copy the model again.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}). Ask who owns it, or copy the model.") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not an object of settings. Copy the model again.")
    return found


def _malformed(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name}/config.json is malformed: {type(error).__name__}: {' '.join(str(error).split())[:300]}. "
        "Copy the model again."
    )


def check_config(config: PreTrainedConfig) -> None:
    """Refuse model types that sinkscope cannot read at all.

    Raises:
        UnsupportedModelError: the model has no attention.
    """
    if config.model_type in ATTENTION_FREE:
        raise _attention_free(config.model_type)


def load_weights(
    name: str,
    config: PreTrainedConfig,
    *,
    local: bool,
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """Load the class that the configuration names, whole, in evaluation mode.

    Args:
        name: folder or hub id.
        config: its configuration.
        local: never touch the network.
        dtype: cast to this; ``None`` keeps the checkpoint's own.
        settings: handed to ``from_pretrained`` as they are, such as ``device_map`` or ``gguf_file``.

    Raises:
        ModelError: weights are absent, truncated, missing, of the wrong shape, of more blocks than the configuration
            has, or not finite.
    """
    cls = model_class(config)
    model, info = _load(cls, name, config, local, dtype, **settings)
    missing = sorted(info["missing_keys"])
    if missing and all(".pooler." in f".{key}" for key in missing):
        with contextlib.suppress(ModelError):  # a class that cannot be built without its pooler keeps the keys missing
            model, info = _load(cls, name, config, local, dtype, add_pooling_layer=False, **settings)
            missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"load_model({name!r}): {len(missing)} weights of {cls.__name__} are missing from the checkpoint: "
            f"{_list(missing)}. They would be random. Copy the model again, or use a checkpoint of this class."
        )
    _refuse_more_blocks(model, info["unexpected_keys"], name)
    _refuse_left_out(model, info["unexpected_keys"], name)
    check_finite(model, name)
    return model.eval()


def _refuse_more_blocks(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Refuse a checkpoint of more blocks than the configuration names; a head that is not wanted may be left out.

    Raises:
        ModelError: a weight that was left out is one of the model's, but for the number of its block.
    """
    known = {_NUMBER.sub(".#.", key) for key in model.state_dict()}
    known |= {f"{model.base_model_prefix}.{key}" for key in known}
    more = sorted(key for key in unexpected if "#" in (plain := _NUMBER.sub(".#.", key)) and plain in known)
    if more:
        raise ModelError(
            f"load_model({name!r}): the checkpoint holds {len(more)} weights of blocks that config.json does not name: "
            f"{_list(more)}. They would be left out. config.json belongs to another model."
        )


def _refuse_left_out(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Refuse a checkpoint with weights that its configuration switches off: biases, norms of queries, adapters.

    A head or a tower that is not wanted may be left out, and so may buffers that an older version of transformers wrote
    beside the weights of a block (frequencies of rotary positions, causal masks).

    Raises:
        ModelError: a weight that was left out belongs to a module or a block that the model has.
    """
    modules = dict(model.named_modules())
    own = {path for path, module in modules.items() if next(module.parameters(recurse=False), None) is not None}
    start = f"{model.base_model_prefix}."

    def belongs(key: str) -> bool:
        for each in {key, key.removeprefix(start), start + key}:
            path, _, last = each.rpartition(".")
            block = _BLOCK.match(each)
            inside = block is not None and block[1] in modules and path not in modules and last in ("weight", "bias")
            if path in own or inside:
                return True
        return False

    left = sorted(filter(belongs, unexpected))
    if left:
        raise ModelError(
            f"load_model({name!r}): the checkpoint holds {len(left)} weights that {type(model).__name__} has no place "
            f"for as config.json describes it: {_list(left)}. Without them it would be another model. Copy config.json "
            "again, or use a checkpoint of this class."
        )


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class named in ``config.architectures``, else the usual class with a head for this model type.

    Raises:
        UnsupportedModelError: there is no class for it.
    """
    given = getattr(config, "architectures", None) or ()
    for named in given if isinstance(given, list | tuple) else ():
        cls = getattr(transformers, str(named), None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    two_sided: tuple[Any, ...] = (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )
    for table in (
        *(two_sided if getattr(config, "is_encoder_decoder", False) else ()),
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
    ):
        named = table.get(config.model_type)
        if named is not None:
            return getattr(transformers, named if isinstance(named, str) else named[0])
    raise UnsupportedModelError(
        f"model type {config.model_type!r}: transformers {transformers.__version__} has no model class for it."
    )


@torch.no_grad()
def check_finite(model: torch.nn.Module, name: str) -> None:
    """Refuse a model that holds a number that is not finite, naming the first such tensor.

    A buffer may hold infinities: bounds that clip nothing (Gemma 4's audio encoder), hidden places of a mask.

    Raises:
        ModelError: a weight is NaN or infinite, or a buffer NaN; or there are no numbers.
    """
    buffers = {name for name, _ in model.named_buffers()}
    tensors = [(key, part) for key, tensor in model.state_dict().items() for part in _plain_parts(tensor)]
    absent = [key for key, tensor in tensors if tensor.is_meta and type(tensor) is torch.Tensor]
    if absent and not any(hasattr(module, "_hf_hook") for module in model.modules()):  # accelerate brings what it keeps
        raise ModelError(
            f"{name}: {absent[0]} lies on the meta device and holds no numbers ({len(absent)} such tensors). Load the "
            "weights first, with from_pretrained or load_state_dict(..., assign=True)."
        )
    for key, tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
            continue
        tensor = tensor.float() if tensor.itemsize == 1 else tensor  # float8 knows no such operation
        low, high = torch.aminmax(tensor)  # NaN and infinity both show in the extremes, with no second copy in memory
        broken = torch.isnan if key in buffers else lambda number: ~torch.isfinite(number)
        if bool(broken(low)) or bool(broken(high)):
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name}: {key} holds {count} of {tensor.numel()} numbers that are not finite. The checkpoint is "
                f"damaged, or overflowed in {str(tensor.dtype).removeprefix('torch.')}. Copy it again, or load it with "
                "another dtype."
            )


def _plain_parts(tensor: Any) -> list[torch.Tensor]:
    """Return a tensor, or those that a quantised one is made of: most operations are none of its own."""
    if not isinstance(tensor, torch.Tensor):  # quantised layers keep types and packed weights in their state
        return []
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or hasattr(tensor, "full_tensor"):  # cut over ranks
        return [tensor]
    return [part for name in flatten()[0] for part in _plain_parts(getattr(tensor, name))]


def _load(
    cls: type[PreTrainedModel], name: str, config: PreTrainedConfig, local: bool, dtype: Any, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        with loading():
            loaded: Any = cls.from_pretrained(
                name, config=config, dtype=dtype or "auto", local_files_only=local, trust_remote_code=False,
                use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **settings,
            )  # fmt: skip
    except SafetensorError as error:
        raise ModelError(
            f"load_model({name!r}): a weight file is truncated or damaged ({error}). Copy the model again."
        ) from None
    except OSError as error:
        raise _no_weights(name, local, error) from None
    except Exception as error:  # whatever the code of an architecture raises of a configuration that does not fit it
        raise ModelError(
            f"load_model({name!r}): {cls.__name__} cannot be loaded ({type(error).__name__}: {first_line(error)}). "
            "Check config.json and what was given to load_model, or copy the model again."
        ) from None
    model, info = loaded
    if info["mismatched_keys"]:
        key, found, wanted = sorted(info["mismatched_keys"])[0]
        raise ModelError(
            f"load_model({name!r}): {key} has shape {tuple(found)} in the checkpoint and {tuple(wanted)} in "
            f"{cls.__name__} ({len(info['mismatched_keys'])} such weights). config.json belongs to another model."
        )
    return model, info


def _no_weights(name: str, local: bool, error: Exception) -> ModelError:
    if not local:
        return unreachable(name, error)
    files = {path.name for path in Path(name).iterdir()}
    index = Path(name) / "model.safetensors.index.json"
    if index.is_file():
        shards = _json_object(index).get("weight_map")
        wanted = {str(file) for file in shards.values()} if isinstance(shards, dict) else set[str]()
        absent = sorted(wanted - files)
        return ModelError(f"load_model({name!r}): weight files {_list(absent)} are absent. Copy the model again.")
    if any(file.endswith((".bin", ".pt", ".pth")) for file in files):
        return ModelError(
            f"load_model({name!r}): its weights are pickles, which can run code when they are read. Save them as "
            "safetensors (model.save_pretrained) and load that."
        )
    return ModelError(f"load_model({name!r}): there is no model.safetensors in this folder. Copy the model again.")


def unreachable(name: str, error: Exception) -> ModelError:
    """Make the error for a hub id that cannot be read."""
    return ModelError(
        f"load_model({name!r}): there is no such local folder, and no such model on the hub could be read "
        f"({first_line(error)}). Check the spelling and the network, or give a local folder or 'zoo:NAME'."
        f"{did_you_mean(name, registry.names('source'))}"
    )


def _attention_free(model_type: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"model type {model_type!r} has no attention, so there is nothing to read or edit in it."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, cut at 300 characters."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:300]


def _list(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
