"""Where SADS begins: the layer at which attention gradients turn sparse and visual keys spread, as far as it is known.

The sources name both curves and define neither (a reviewer asked). The definitions here are this package's, chosen to
be checked: Hoyer sparsity of dLoss/dA over rows after the image and visual keys, variance of visual keys over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from sinkscope import metrics
from sinkscope.attention.call import Call
from sinkscope.engine.gradients import attention_gradients
from sinkscope.engine.run import find_tower
from sinkscope.errors import PromptError
from sinkscope.models.backends.base import Tower
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Batch, Prompts

PUBLISHED: dict[str, int] = {"Qwen2.5-VL-3B": 20, "InternVL2-2B": 15, "LLaVA-1.5-7B": 20}
"""Start layers that were published."""
FALLBACK_SHARE = 0.625
"""Start layer over depth of LLaVA-1.5-7B and InternVL2-2B, used where the curves show no jump."""
JUMP, MAD = 3.0, 1.4826
SMALL = 1e-3
FLOOR = 1e-6


@dataclass(frozen=True)
class Trigger:
    """A start layer and why: ``found`` is False where it is the fallback."""

    layer: int
    found: bool
    reason: str


def trigger_layer(sparsity: ArrayLike, variance: ArrayLike) -> Trigger:
    """First layer of the second half whose step is a jump (robust z above 3) in both curves; else the fallback.

    The robust z of a step d is (d - median) / (1.4826 MAD) over all steps of its curve, that at least 1e-6 of
    the largest step. Both curves have one number per layer.

    Raises:
        PromptError: the curves differ in length or have fewer than three layers.
    """
    curves = [np.asarray(curve, dtype=np.float64) for curve in (sparsity, variance)]
    depth = len(curves[0])
    if len(curves[1]) != depth or depth < 3:
        raise PromptError(
            f"trigger_layer: curves of {depth} and {len(curves[1])} layers. Give two of one length, at least 3."
        )
    jumps = [_robust_z(np.diff(curve)) > JUMP for curve in curves]
    both = np.flatnonzero(jumps[0] & jumps[1]) + 1
    late = both[both >= depth / 2]
    if late.size:
        return Trigger(int(late[0]), True, f"both curves jump at layer {int(late[0])}")
    layer = min(depth - 1, round(FALLBACK_SHARE * depth))
    return Trigger(layer, False, f"no layer where both curves jump; layer {layer} is {FALLBACK_SHARE:g} of the depth")


def _robust_z(steps: np.ndarray) -> np.ndarray:
    centre = np.nanmedian(steps)
    spread = MAD * np.nanmedian(np.abs(steps - centre))
    least = FLOOR * np.nanmax(np.abs(steps))  # steps that are equal but for rounding have no spread of their own
    return np.nan_to_num((steps - centre) / max(spread, least, np.finfo(float).tiny))


def find_trigger(model: Model, prompts: Prompts) -> tuple[Trigger, xr.Dataset]:
    """Measure both curves on ``prompts``, average over prompts and heads, and find the start layer.

    The variance of keys before rotary positions is used where the model shows it, else that of keys as attended to.

    Raises:
        PromptError: a prompt has no image or no text after it.
    """
    curves = measure_curves(model, prompts)
    before = curves["key_variance"].mean(["prompt", "kv_head"])
    variance = before if bool(before.notnull().all()) else curves["key_variance_rotated"].mean(["prompt", "kv_head"])
    return trigger_layer(curves["sparsity"].mean("prompt").values, variance.values), curves


def measure_curves(model: Model, prompts: Prompts) -> xr.Dataset:
    """Return the gradient sparsity and key variance of each layer, one prompt at a time with gradients.

    Variables: ``sparsity`` (prompt layer), Hoyer sparsity of dLoss/dA over rows after the image and visual keys, all
    heads; ``small`` (prompt layer), share of its entries below 1e-3 of the largest; ``key_variance`` (prompt layer
    kv_head), mean over dims of the variance over visual tokens of the keys before rotary positions (NaN where the
    attention has no ``k_proj``); ``key_variance_rotated``, of the keys as attention sees them. The loss is the mean
    next-token loss of the rows after the image.

    Raises:
        PromptError: a prompt has no image or fewer than two tokens after it.
    """
    tower = find_tower(model, None)
    with model.exclusive():
        rows = [_curves_of(model, tower, prompts.batch([i], model.device), i) for i in range(len(prompts))]
    dims = {"sparsity": 1, "small": 1, "key_variance": 2, "key_variance_rotated": 2}
    return xr.Dataset(
        {
            name: (("prompt", "layer", "kv_head")[: n + 1], np.stack([row[name] for row in rows]))
            for name, n in dims.items()
        },
        coords={"prompt": np.arange(len(prompts)), "layer": [site.layer for site in tower.attention]},
    )


def _curves_of(model: Model, tower: Tower, batch: Batch, which: int) -> dict[str, np.ndarray]:
    image = (batch.roles[0] == ROLE_INDEX["image"]) & batch.real[0]
    places = image.nonzero()[:, 0]
    if len(places) == 0 or int(places[-1]) + 2 >= image.shape[0]:
        raise PromptError(f"find_trigger: prompt {which} needs an image and at least two tokens after it.")
    after = int(places[-1]) + 1
    raw: dict[int, torch.Tensor] = {}
    keys: dict[int, torch.Tensor] = {}

    def loss(logits: torch.Tensor) -> torch.Tensor:
        ids = batch.inputs["input_ids"][0, after + 1 :]
        return torch.nn.functional.cross_entropy(logits[0, after:-1].float(), ids)

    def look(layer: int, call: Call) -> None:
        keys[layer] = call.key.detach()[0]

    handles = [
        module.register_forward_hook(_note(raw, site.layer))
        for site in tower.attention
        if (module := getattr(model.model.get_submodule(site.path), "k_proj", None)) is not None
    ]
    try:
        layers = [site.layer for site in tower.attention]
        found = attention_gradients(model, batch, layers, loss, look=look)
    finally:
        for handle in handles:
            handle.remove()
    blocks = [gradient[0, :, after:][:, :, image].flatten().float().cpu().numpy() for _, gradient in found.values()]
    rotated = [keys[site.layer][:, image].float().var(1, correction=0).mean(-1) for site in tower.attention]
    plain = [_plain_variance(raw.get(site.layer), site.kv_heads, image) for site in tower.attention]
    return {
        "sparsity": np.array([metrics.hoyer_sparsity(values) for values in blocks]),
        "small": np.array([_share_small(values) for values in blocks]),
        "key_variance": np.stack(plain),
        "key_variance_rotated": torch.stack(rotated).cpu().numpy(),
    }


def _note(store: dict[int, torch.Tensor], layer: int) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> None:
        store[layer] = output.detach()[0]

    return hook


def _plain_variance(keys: torch.Tensor | None, heads: int, image: torch.Tensor) -> np.ndarray:
    if keys is None:
        return np.full(heads, np.nan, dtype=np.float32)
    return keys.unflatten(-1, (heads, -1))[image].float().var(0, correction=0).mean(-1).cpu().numpy()


def _share_small(values: np.ndarray) -> float:
    size = np.abs(values)
    return float((size < SMALL * size.max()).mean()) if size.size and size.max() > 0 else float("nan")
