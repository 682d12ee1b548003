"""GGUF files, the format of llama.cpp: de-quantised by transformers once, then loaded from the cache.

Weights are written in float32, in which every number of a GGUF block is exact; what quantisation lost stays lost, so
readings say what the weights were de-quantised from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata

from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models import weights
from sinkscope.models.sources import cache
from sinkscope.models.sources.base import Checkpoint

log = logging.getLogger("sinkscope")

MAGIC = b"GGUF"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
"""Ending of a file of a model that llama.cpp's gguf-split cut in pieces."""

PLAIN = ("F32", "F16", "BF16")
"""Kinds of a GGUF file whose weights are not quantised."""

SAMPLE = "The quick brown fox, 12345; \n\n\tépée 日本 don't <s>"
"""A text on which the saved tokenizer must give the ids that the file's own gives."""


def checkpoint(path: Path, *, label: str = "", source: str = "") -> Checkpoint:
    """Return the folder that a GGUF file was converted to, converting it now if that was not done before.

    Args:
        path: the file.
        label: name that readings carry; the file's name without its ending when empty.
        source: name by which the model is known, kept in the cache so that it is found again without the file.

    Raises:
        ModelError: not a GGUF file, truncated, without a tokenizer, no room in the cache, or ``gguf`` is not installed.
        UnsupportedModelError: an architecture or a quantisation that transformers cannot read.
    """
    return convert([path], path.name, label=label or path.name.removesuffix(".gguf"), source=source)


def convert(parts: Sequence[Path], name: str, *, label: str, source: str = "", notice: str = "") -> Checkpoint:
    """As :func:`checkpoint`, for a file that lies in several parts.

    ``name`` is that of the whole file; ``notice`` is logged before it is converted, such as where its terms of use are.
    """
    for part in parts:
        if not part.is_file():
            raise ModelError(f"load_model({(source or name)!r}): {part} is absent. Install or copy the model again.")
    _check_header(parts[0], name)
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)

    def make(folder: Path) -> dict[str, Any]:
        if notice:
            log.warning("%s", notice)
        log.warning("de-quantising %s into %s; this is done once", name, cache.root())
        whole = parts[0] if len(parts) == 1 else _join(parts, folder / ".whole.gguf")
        kind = _write(whole, name, folder)
        if whole not in parts:
            whole.unlink()
        made = "written in float32 from" if kind in PLAIN else "de-quantised from"
        return {"origin": f"{made} {kind} (GGUF, sha256 {digest.hexdigest()[:12]})", "file": name, "source": source}

    entry = cache.obtain(digest.hexdigest(), make)
    return Checkpoint(str(entry.folder), local=True, label=label, origin=entry.origin)


def begins_as(path: Path) -> bool:
    """Say whether a file begins as a GGUF file does.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"load_model({str(path)!r}): the file cannot be read: {error.strerror}.") from None


def _check_header(path: Path, name: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{name}: reading GGUF files needs the package gguf. Install it with: pip install gguf")
    if not begins_as(path):
        raise ModelError(
            f"load_model({str(path)!r}): this is not a GGUF file (it does not begin with {MAGIC!r}). Name a "
            "file that llama.cpp or Ollama reads, or the folder that model.save_pretrained wrote."
        )
    if PART.search(name):
        raise ModelError(
            f"load_model({str(path)!r}): this is one part of a model that was split. Join the parts first, with "
            "llama.cpp's llama-gguf-split --merge."
        )


def _write(path: Path, name: str, folder: Path) -> str:
    """Write weights, configuration and tokenizer into ``folder``; give the name of the quantisation."""
    place, file = str(path.parent), path.name
    with _explaining(path, name):
        with weights.loading():
            config = AutoConfig.from_pretrained(place, gguf_file=file, local_files_only=True)
        weights.check_config(config)
        wanted = _size(config)
    cache.check_room(folder, wanted)  # before the work: de-quantising takes minutes, and memory
    with _explaining(path, name):
        model = weights.load_weights(place, config, local=True, dtype=torch.float32, gguf_file=file)
    _write_tokenizer(path, name, folder)
    with weights.loading():
        _plain(model).save_pretrained(folder)
    return _kind(path)


def _size(config: PreTrainedConfig) -> int:
    """Bytes of a model's weights in float32."""
    with torch.device("meta"):
        model = weights.model_class(config)(config)
    return sum(weight.numel() for weight in model.parameters()) * torch.float32.itemsize


@contextlib.contextmanager
def _explaining(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except UnsupportedModelError:
        raise
    except Exception as error:  # the readers of GGUF raise whatever a damaged byte makes of their indices
        raise _explained(path, name, error) from error


def _write_tokenizer(path: Path, name: str, folder: Path) -> None:
    """Save the fast tokenizer, which loads ten times faster than the file's table of merges, and compare the two.

    It is saved for the plain class, since those of some architectures build their tokenizer anew at each load, and with
    its named special tokens beside it: without such a list transformers parses the whole table once more to find them.
    """
    try:
        with weights.loading():
            own = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
            own.save_pretrained(folder)
            own.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            settings["added_tokens_decoder"] = _named_special_tokens(own)
            (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            saved = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        kind = read_gguf_metadata(str(path))[0].get("tokenizer.ggml.model")
        found = "it holds none" if kind is None else f"it is of the kind {kind!r}: {weights.first_line(error)}"
        raise ModelError(
            f"load_model({name!r}): no tokenizer can be read from this file ({found}). Use a file that llama.cpp's "
            "converter made from a model with its tokenizer."
        ) from error
    if _reads(own) != _reads(saved):
        raise ModelError(
            f"load_model({name!r}): the saved tokenizer reads text otherwise than the file's own, so this file cannot "
            f"be converted with transformers {transformers.__version__}. Load the original model instead."
        )


def _named_special_tokens(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """The tokens of ``special_tokens_map``, by id, as a tokenizer's configuration lists them."""
    named = set(tokenizer.all_special_ids)
    settings = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {
        str(number): {key: getattr(token, key) for key in settings}
        for number, token in tokenizer.added_tokens_decoder.items()
        if number in named
    }


def _reads(tokenizer: Any) -> dict[str, Any]:
    """What must be equal for two tokenizers to read every text alike."""
    return {
        "ids": tokenizer(SAMPLE).input_ids,
        "added": tokenizer.get_added_vocab(),
        "special": tokenizer.special_tokens_map,
        "length": len(tokenizer),
    }


def _kind(path: Path) -> str:
    """Give llama.cpp's name of the file's kind, such as Q4_K_M."""
    from gguf import LlamaFileType

    number = read_gguf_metadata(str(path))[0].get("general.file_type")
    known = {int(kind): kind.name for kind in LlamaFileType}
    return known.get(number, "an unnamed kind").removeprefix("MOSTLY_").removeprefix("ALL_")  # type: ignore[arg-type]


def _join(parts: Sequence[Path], target: Path) -> Path:
    cache.check_room(target.parent, sum(part.stat().st_size for part in parts))
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 22)
    return target


def _plain(model: Any) -> PreTrainedModel:
    """Take off what says that the weights are quantised, so that they can be saved as what they now are: float32."""
    model.hf_quantizer = None
    del model.config.quantization_config
    return model


def _explained(path: Path, name: str, error: Exception) -> ModelError:
    """Say what is wrong with a file that could not be loaded, by reading it once more with its own library."""
    from gguf import GGUFReader

    start = f"load_model({name!r}): "
    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = str(field.contents()) if field is not None else ""
    except Exception:  # what NumPy says of a buffer that ends too early helps nobody
        return ModelError(
            f"{start}this GGUF file is truncated or damaged: of its {path.stat().st_size:,} bytes the part that lists "
            "or holds the tensors cannot be read. Copy it again, and compare its size with that of the original."
        )
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    reason = weights.first_line(error).split("): ", 1)[-1]  # without the "load_model(FOLDER): " of an error of ours
    if "architecture" in reason and "not supported" in reason:
        return UnsupportedModelError(
            f"{start}transformers {transformers.__version__} cannot read GGUF files of the architecture "
            f"{architecture!r}. Load the original model instead of its GGUF file."
        )
    if "ggml type" in reason or "equantiz" in reason:
        return UnsupportedModelError(
            f"{start}a quantisation in this file cannot be de-quantised (it holds {', '.join(sorted(kinds))}: {reason}"
            "). Take a file in another one, such as Q4_K_M, Q8_0 or F16."
        )
    return ModelError(f"{start}this GGUF file of the architecture {architecture!r} cannot be loaded: {reason}")
