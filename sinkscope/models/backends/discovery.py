"""Finding out what a transformers model is made of, by running one token or one blank image through it.

Nothing is looked up by architecture name. A module that calls the attention function is an attention layer; the first
projection that then reads an input of heads x width is its W_O; the list member it sits in is its block; and the place
between attention and MLP is the first module of the block that reads neither the block's input nor the raw attention
output. Parallel blocks have no such place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, ResidualSite, Tower

MID_CANDIDATES = (
    "pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "layernorm_after", "norm2", "layer_norm2",
    "final_layer_norm", "ffn_norm", "intermediate", "mlp",
)  # fmt: skip
"""Children of a block that read the stream between attention and MLP, tried in this order and then checked."""

VISION_ROOTS = ("vision_tower", "visual", "vision_model", "vision_encoder")


@dataclass
class _Seen:
    """One attention call of the trial run."""

    module: torch.nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    implicit_sink: bool
    entry: int
    output: torch.nn.Module | None = None


@dataclass
class _Trial:
    calls: list[_Seen] = field(default_factory=list)
    entries: Counter[int] = field(default_factory=Counter)

    def enter(self, module: torch.nn.Module, _args: tuple[Any, ...]) -> None:
        self.entries[id(module)] += 1

    def observe(self, module: torch.nn.Module, call: Call) -> None:
        heads, dim = call.query.shape[1], call.value.shape[-1]
        causal = call.mask.kind == "causal" or (call.mask.kind == "rule" and _looks_back(call))
        sink = call.sink_logits is not None or call.extra_key is not None or call.normaliser != "softmax"
        entry = self.entries[id(module)]
        if self.calls and (self.calls[-1].module, self.calls[-1].entry) == (module, entry) and call.mask.kind == "full":
            return  # one window or image after another inside one layer, not a layer that is run again
        self.calls.append(_Seen(module, heads, call.key.shape[1], dim, causal or _says_causal(module), sink, entry))

    def projection(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if not self.calls or self.calls[-1].output is not None or not args or not isinstance(args[0], torch.Tensor):
            return
        if args[0].shape[-1] == self.calls[-1].heads * self.calls[-1].head_dim:
            self.calls[-1].output = module


def discover(model: torch.nn.Module) -> dict[str, Tower]:
    """Find the towers of ``model``: ``text`` first where there is one, ``vision`` where there is one.

    Raises:
        UnsupportedModelError: the model has no attention, or its attention bypasses the library's interface.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder; cross-attention is not read yet. Pass its encoder alone."
        )
    return _towers(model, _watch(model, lambda: _run_trial(model)))


def explore(model: torch.nn.Module, name: str, run: Callable[[], Any]) -> Tower:
    """Find the tower ``name`` of ``model`` whose attention layers are those that ``run()`` calls.

    Raises:
        UnsupportedModelError: it calls none.
    """
    return tower(model, name, _watch(model, run), run)


def _run_trial(model: torch.nn.Module) -> None:
    for inputs in trial_inputs(model):
        model(**inputs)


def _watch(model: torch.nn.Module, run: Callable[[], Any]) -> list[_Seen]:
    trial = _Trial()
    handles = [
        m.register_forward_pre_hook(trial.projection)
        for m in model.modules()
        if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"
    ]
    handles += [m.register_forward_pre_hook(trial.enter) for m in model.modules()]
    session = seam.Session(observe=trial.observe)
    try:
        with torch.no_grad(), seam.entered(model, session):
            run()
    except Exception as error:
        if not trial.calls:
            raise _bypass(model, error) from None
        raise
    finally:
        for handle in handles:
            handle.remove()
    if not trial.calls:
        raise _bypass(model, None)
    return trial.calls


def _bypass(model: torch.nn.Module, error: Exception | None) -> UnsupportedModelError:
    told = f" ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''})" if error else ""
    return UnsupportedModelError(
        f"{type(model).__name__}: running one token made no call to transformers' attention interface{told}. "
        "The model has no attention, or computes it by itself; use backend='lens' where TransformerLens serves it."
    )


def trial_inputs(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    """Smallest inputs that reach every attention layer: one token, one blank image, or both."""
    config: Any = model.config
    device = next(model.parameters()).device
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    start = next((i for i in (getattr(text, n, None) for n in ("bos_token_id", "eos_token_id")) if _is_id(i, text)), 0)
    ids = torch.tensor([[start]], device=device)
    vision = getattr(config, "vision_config", None)
    if model.main_input_name == "pixel_values" and vision is None:
        return [{"pixel_values": _blank(config, model)}]
    if vision is not None and hasattr(model, "logit_scale"):
        return [{"input_ids": ids, "pixel_values": _blank(vision, model)}]
    return [{"input_ids": ids}]


def _is_id(value: Any, text: Any) -> bool:
    return isinstance(value, int) and 0 <= value < getattr(text, "vocab_size", 1)


def _blank(config: Any, model: torch.nn.Module) -> torch.Tensor:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    channels = getattr(config, "num_channels", 3)
    return torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)


def find_vision_root(model: torch.nn.Module) -> str | None:
    """Path of the vision part of a larger model."""
    for path, _ in model.named_modules():
        if path.split(".")[-1] in VISION_ROOTS:
            return path
    return None


def _towers(model: torch.nn.Module, calls: list[_Seen]) -> dict[str, Tower]:
    paths = {id(module): path for path, module in model.named_modules()}
    root = find_vision_root(model) if getattr(model.config, "vision_config", None) is not None else None
    groups: dict[str, list[_Seen]] = {}
    only_vision = model.main_input_name == "pixel_values" and getattr(model.config, "vision_config", None) is None
    for call in calls:
        inside = only_vision or (root is not None and f"{paths[id(call.module)]}.".startswith(f"{root}."))
        groups.setdefault("vision" if inside else "text", []).append(call)
    towers = {name: tower(model, name, groups[name]) for name in ("text", "vision") if name in groups}
    return towers


def tower(model: torch.nn.Module, name: str, calls: list[_Seen], run: Callable[[], Any] | None = None) -> Tower:
    """Number the layers of one group of calls and find its blocks and residual-stream sites; ``run`` calls them."""
    paths = {id(module): path for path, module in model.named_modules()}
    sites = tuple(
        AttentionSite(
            layer, paths[id(c.module)], c.heads, c.kv_heads, c.head_dim, c.causal, c.implicit_sink,
            None if c.output is None else paths[id(c.output)],
        )
        for layer, c in enumerate(calls)
    )  # fmt: skip
    blocks = [block_path(model, site.path) for site in sites]
    residual, d_model = _residual_sites(model, sites, blocks, run or (lambda: _run_trial(model)))
    return Tower(name, sites, residual, d_model)


def block_path(model: torch.nn.Module, path: str) -> str:
    """Path of the outermost list member that holds the attention module: the transformer block."""
    parts = path.split(".")
    for i in range(1, len(parts)):
        parent = model.get_submodule(".".join(parts[: i - 1])) if i > 1 else model
        inner = getattr(parent, parts[i - 1], None)
        if isinstance(inner, torch.nn.ModuleList):
            return ".".join(parts[: i + 1])
    return path


def _residual_sites(
    model: torch.nn.Module, sites: tuple[AttentionSite, ...], blocks: list[str], run: Callable[[], Any]
) -> tuple[tuple[ResidualSite, ...], int]:
    mids, d_model = _mid_paths(model, sites, blocks, run)
    turns = [blocks[:layer].count(block) if blocks.count(block) > 1 else None for layer, block in enumerate(blocks)]
    found = [ResidualSite("embed", blocks[0], True, turns[0])]
    for layer, mid in enumerate(mids):
        if mid is not None:
            found.append(ResidualSite(f"{layer}.mid", mid, True, turns[layer]))
        last = layer == len(blocks) - 1
        after = layer if last else layer + 1
        found.append(ResidualSite(f"{layer}.post", blocks[after], not last, turns[after]))
    return tuple(found), d_model


def _mid_paths(
    model: torch.nn.Module, sites: tuple[AttentionSite, ...], blocks: list[str], run: Callable[[], Any]
) -> tuple[list[str | None], int]:
    seen: dict[str, torch.Tensor] = {}
    handles = []

    def keep_input(path: str) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if isinstance(hidden, torch.Tensor):
                seen.setdefault(path, hidden.detach())

        return hook

    def keep_output(path: str) -> Any:
        def hook(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
            seen.setdefault(f"{path}>", output.detach())

        return hook

    watched: list[str] = []
    for site, block in zip(sites, blocks, strict=True):
        names = [f"{block}.{name}" for name in MID_CANDIDATES if hasattr(model.get_submodule(block), name)]
        watched += [block, site.path, *names]
    for path in dict.fromkeys(watched):
        handles.append(model.get_submodule(path).register_forward_pre_hook(keep_input(path), with_kwargs=True))
    for site in sites:
        if site.output_path is not None:
            handles.append(model.get_submodule(site.output_path).register_forward_hook(keep_output(site.output_path)))
    try:
        with torch.no_grad(), seam.entered(model, seam.Session()):
            run()
    finally:
        for handle in handles:
            handle.remove()
    d_model = seen[blocks[0]].shape[-1]
    return [_mid_of(seen, site, block) for site, block in zip(sites, blocks, strict=True)], d_model


def _mid_of(seen: dict[str, torch.Tensor], site: AttentionSite, block: str) -> str | None:
    """First candidate whose input is neither the block's input nor the attention's input or raw output."""
    others = [seen.get(block), seen.get(site.path), seen.get(f"{site.output_path}>")]
    for name in MID_CANDIDATES:
        candidate = seen.get(f"{block}.{name}")
        if candidate is None:
            continue
        if _same(candidate, others[0]):
            return None
        if any(_same(candidate, other) for other in others[1:]):
            if name in ("mlp", "intermediate"):
                return None
            continue
        return f"{block}.{name}"
    return None


def _same(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    return b is not None and a.numel() == b.numel() and torch.allclose(a.reshape(-1), b.reshape(-1), atol=1e-6)


def _looks_back(call: Call) -> bool:
    """True where the library's rule hides a later key from an earlier query: a decoder's window."""
    rule = call.mask.rule
    zero = torch.zeros(1, dtype=torch.long, device=call.mask.device)
    return not bool(torch.as_tensor(rule(zero, zero, zero, zero + 1)).any()) if not call.mask.use_vmap else True


def _says_causal(module: torch.nn.Module) -> bool:
    return bool(getattr(module, "is_causal", False))
