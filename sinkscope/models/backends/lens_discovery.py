"""Finding out what a TransformerBridge offers, by running two tokens (or one blank image) through its hook points."""

from __future__ import annotations

from typing import Any

import torch

from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, Block, ResidualSite, Tower
from sinkscope.models.backends.discovery import trial_inputs
from sinkscope.models.backends.lens_hooks import Seat

ATTENTION = ("hook_k", "hook_rot_k", "hook_k_normed", "hook_v", "hook_attn_scores", "hook_pattern", "hook_z")
BLOCK = ("hook_resid_pre", "hook_resid_mid", "mlp.in.hook_in", "hook_resid_post")


def split_inputs(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Take the bridge's positional input (ids, or pixels where there are none) out of a model's keyword arguments."""
    rest = dict(inputs)
    first = rest.pop("input_ids") if "input_ids" in rest else rest.pop("pixel_values")
    return first, rest


def explore(bridge: Any) -> tuple[tuple[Seat, ...], Tower]:
    """Find the attention layers and residual-stream sites of a bridge.

    Raises:
        UnsupportedModelError: no attention weights reach TransformerLens's hooks in some layer.
    """
    name = type(getattr(bridge, "original_model", bridge)).__name__
    blocks = getattr(bridge, "blocks", None)
    if blocks is None or not hasattr(bridge, "original_model"):
        raise UnsupportedModelError(
            f"{name}: this bridge has no single stack of blocks that runs here; sinkscope reads decoders and encoders "
            "held in memory. Load the transformers model instead."
        )
    seen = _watch(bridge, len(blocks))
    without = [layer for layer in range(len(blocks)) if not {"hook_pattern", "hook_v"} <= set(seen.get(layer, {}))]
    if without:
        config = bridge.original_model.config
        raise UnsupportedModelError(
            f"{name}: TransformerLens hands over no attention weights in layers {without} (attention implementation "
            f"{getattr(config, '_attn_implementation', 'unknown')!r}). Build the bridge from a model loaded with "
            "attn_implementation='eager', or load the transformers model instead of the bridge."
        )
    seats = tuple(_seat(bridge, layer, seen[layer]) for layer in range(len(blocks)))
    vision = bool(getattr(bridge.cfg, "is_visual_model", False))
    tower = Tower(
        "vision" if vision else "text", tuple(seat.site for seat in seats), _residual(bridge, seen),
        int(bridge.cfg.d_model), tuple(Block(seat.site.layer, f"blocks.{seat.site.layer}") for seat in seats),
    )  # fmt: skip
    return seats, tower


def _watch(bridge: Any, layers: int) -> dict[int, dict[str, torch.Tensor]]:
    """What each hook point held in a trial run, in the order in which they fired."""
    seen: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in range(layers)}

    def keep(layer: int, name: str) -> Any:
        def hook(tensor: Any, hook: Any) -> None:
            if isinstance(tensor, torch.Tensor):
                seen[layer][name] = tensor.detach()

        return hook

    known = bridge.hook_dict
    hooks = []
    for layer in range(layers):
        places = {name: f"blocks.{layer}.attn.{name}" for name in ATTENTION}
        places |= {name: f"blocks.{layer}.{name}" for name in BLOCK}
        hooks += [(place, keep(layer, name)) for name, place in places.items() if place in known]
    inputs = trial_inputs(bridge.original_model)[0]
    if "input_ids" in inputs:
        inputs["input_ids"] = inputs["input_ids"].repeat(1, 2)
    first, rest = split_inputs(inputs)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        bridge.forward(first, return_type="logits", **rest)
    return seen


def _seat(bridge: Any, layer: int, seen: dict[str, torch.Tensor]) -> Seat:
    module, pattern, value = bridge.blocks[layer].attn, seen["hook_pattern"], seen["hook_v"]
    path = f"blocks.{layer}.attn"
    if value.ndim != 4:
        raise UnsupportedModelError(
            f"{path}: TransformerLens does not split the values of this model into heads (shape {tuple(value.shape)}). "
            "Load the transformers model instead of the bridge."
        )
    original = module.original_component
    site = AttentionSite(
        layer, path, pattern.shape[1], value.shape[2], value.shape[3],
        causal=pattern.shape[-1] > 1 and not bool(pattern[..., 0, 1:].any()),
        implicit_sink=getattr(original, "sinks", None) is not None,
        output_path=f"{path}.o" if getattr(module, "o", None) is not None else None,
    )  # fmt: skip
    clip = getattr(original, "clip_qkv", None) or getattr(getattr(original, "config", None), "clip_qkv", None)
    key_hook = next((name for name in ("hook_rot_k", "hook_k") if name in seen), "hook_k")
    if getattr(module.config, "qk_norm_after_rope", False):
        key_hook = "hook_k_normed"
    return Seat(site, module, _live(seen, clip), key_hook, float(clip) if clip else None)


def _live(seen: dict[str, torch.Tensor], clip: float | None) -> bool:
    """True where scores come before the pattern, the pattern before the output, and the output is pattern x values."""
    order = list(seen)
    if not {"hook_attn_scores", "hook_z"} <= set(order) or seen["hook_z"].ndim != 4:
        return False
    if not order.index("hook_attn_scores") < order.index("hook_pattern") < order.index("hook_z"):
        return False
    value = seen["hook_v"].transpose(1, 2).float()
    value = value if not clip else value.clamp(-clip, clip)
    pattern = seen["hook_pattern"].float()
    made = torch.matmul(pattern, value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)).transpose(1, 2)
    given = seen["hook_z"].float()
    tolerance = 1e-4 if seen["hook_z"].dtype in (torch.float32, torch.float64) else 5e-2
    return made.shape == given.shape and bool((made - given).abs().max() <= tolerance * given.abs().max().clamp(min=1))


def _residual(bridge: Any, seen: dict[int, dict[str, torch.Tensor]]) -> tuple[ResidualSite, ...]:
    """Sites in order. With post-norm the MLP reads the stream itself, and ``hook_resid_mid`` fires behind it."""
    sites = [ResidualSite("embed", "blocks.0.hook_resid_pre", before=True)]
    for layer, fired in seen.items():
        order = list(fired)
        if "hook_resid_mid" in order:
            late = "mlp.in.hook_in" in order and order.index("mlp.in.hook_in") < order.index("hook_resid_mid")
            place = "mlp.in.hook_in" if late else "hook_resid_mid"
            sites.append(ResidualSite(f"{layer}.mid", f"blocks.{layer}.{place}", before=False))
        if "hook_resid_post" in order:
            sites.append(ResidualSite(f"{layer}.post", f"blocks.{layer}.hook_resid_post", before=False))
        elif "hook_resid_pre" in seen.get(layer + 1, {}):  # GPT-1's block hands its output over unseen
            sites.append(ResidualSite(f"{layer}.post", f"blocks.{layer + 1}.hook_resid_pre", before=False))
    return tuple(sites)
