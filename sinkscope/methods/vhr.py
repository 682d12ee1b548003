"""VHR: heads whose output changes most when the image is taken away, and making them louder.

He et al. 2025 (arXiv 2412.13949). No code was published; what the paper leaves open is an argument here: how the image
is taken away (its placeholders and their wrappers are deleted, positions follow), the k of the token score (4), and the
layers for models that are not 32 deep (the same fraction, an extrapolation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xarray as xr

from sinkscope import metrics
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.edits.heads import GateHeads
from sinkscope.engine.generation import generate
from sinkscope.engine.plan import Plan
from sinkscope.engine.run import find_tower
from sinkscope.errors import EditError, PromptError
from sinkscope.methods.base import MethodResult
from sinkscope.models.backends.base import Instruments
from sinkscope.prompts.vocabulary import image_token_ids
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

WRAPPERS = ("vision_start_token_id", "vision_end_token_id", "boi_token_id", "eoi_token_id", "boi_token_index",
            "eoi_token_index")  # fmt: skip
"""Entries of a model's config that name the tokens around an image."""
LATE_SHARE = 14 / 32
"""Part of the layers, from the end, that the paper reinforces in LLaVA beside layer 1."""


def without_images(prompts: Prompts, model: Model, wrappers: Sequence[int] | None = None) -> Prompts:
    """Return the same prompts with their images taken away: placeholders and the tokens around them deleted.

    ``wrappers`` names further token ids to delete (Idefics 3 and InternVL write tags that their config does not name).

    Raises:
        PromptError: a prompt has no image, or is one processor output that cannot be taken apart.
    """
    if prompts.whole is not None:
        raise PromptError(
            "without_images: these prompts are one processor output that is run whole. Build them with from_chat."
        )
    named = [getattr(model.config, name, None) for name in WRAPPERS]
    gone = {*image_token_ids(model.config), *(i for i in named if isinstance(i, int)), *(wrappers or ())}
    keep = [~np.isin(ids, list(gone)) for ids in prompts.ids]
    bare = [
        which for which, (mask, extra) in enumerate(zip(keep, prompts.extras, strict=True)) if mask.all() or not extra
    ]
    if bare:
        raise PromptError(f"without_images: prompt {bare[0]} has no image to take away. Give prompts with images.")
    return replace(
        prompts,
        ids=tuple(ids[mask] for ids, mask in zip(prompts.ids, keep, strict=True)),
        roles=tuple(roles[mask] for roles, mask in zip(prompts.roles, keep, strict=True)),
        tokens=tuple(
            tuple(token for token, kept in zip(tokens, mask, strict=True) if kept)
            for tokens, mask in zip(prompts.tokens, keep, strict=True)
        ),
        extras=tuple({} for _ in prompts.ids),
        grids=(None,) * len(prompts),
    )


def head_outputs(model: Model, prompts: Prompts, edits: Sequence[Edit] = ()) -> xr.DataArray:
    """Output of every head (before W_O and before its own gate) at the last token: (prompt layer head dim)."""
    rows = [_outputs(model, prompts, index, 1, edits)[0] for index in range(len(prompts))]
    found = np.stack(rows) if rows else np.zeros((0, *_shape(model)), np.float32)
    dims = ("prompt", "layer", "head", "dim")
    coords = {dim: np.arange(size) for dim, size in zip(dims[:3], found.shape, strict=False)}
    return xr.DataArray(found, dims=dims, name="head_output", coords=coords)


def _shape(model: Model) -> tuple[int, int, int]:
    tower = find_tower(model, None)
    heads, dims = (max(getattr(site, name) for site in tower.attention) for name in ("heads", "head_dim"))
    return tower.depth, heads, dims


def _outputs(model: Model, prompts: Prompts, index: int, rows: int, edits: Sequence[Edit]) -> np.ndarray:
    """Outputs at the last ``rows`` tokens of one prompt: (row layer head dim)."""
    tower = find_tower(model, None)
    found = np.full((rows, *_shape(model)), np.nan, dtype=np.float32)
    with torch.no_grad(), model.evaluating():
        batch = prompts.batch([index], model.device)  # of all prompts: an edit may select tokens of each
        plan = Plan(tuple(edits), tower, prompts, batch)
        instruments = Instruments(edits=_watch(plan, found), residual=plan.residual)
        model.backend.forward(batch.inputs, tower, instruments)
    return found


def _watch(plan: Plan, store: np.ndarray) -> Callable[[int, Call], Any]:
    def edits(layer: int, call: Call) -> CallEdits:
        found = plan.call_edits(layer, call) or CallEdits()

        def keep(out: torch.Tensor) -> torch.Tensor:
            last = out[0, -len(store) :].detach().float().cpu().numpy()
            store[:, layer, : last.shape[1], : last.shape[2]] = last
            return out

        found.gates.insert(0, keep)
        return found

    return edits


def divergence(model: Model, prompts: Prompts, bare: Prompts | None = None, edits: Sequence[Edit] = ()) -> xr.Dataset:
    """Vision-aware head divergence at the token that predicts the next word: variables over (prompt layer head).

    ``divergence`` is |z with image - z without| (eqs. 2 to 4), ``without_image`` the squared norm without the image.
    ``relative`` divides by the norm with the image and ``cosine`` is 1 - cosine; these two are not the paper's.
    ``bare`` are the prompts without images (default :func:`without_images`); both sides run under ``edits``.
    """
    plain = bare if bare is not None else without_images(prompts, model)
    full, none = head_outputs(model, prompts, edits), head_outputs(model, plain, edits)
    distance = metrics.head_divergence(full.values, none.values)
    size, other = (np.linalg.norm(array.values.astype(np.float64), axis=-1) for array in (full, none))
    product = (full.values.astype(np.float64) * none.values).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = {
            "divergence": distance, "without_image": other**2, "relative": distance / size,
            "cosine": 1 - product / (size * other),
        }  # fmt: skip
    dims = ("prompt", "layer", "head")
    coords = {name: full[name].values for name in dims}
    attrs = {"metric": "vision_aware_head_divergence", "definition": "he2025", "reference": "he2025", "units": "1"}
    return xr.Dataset({name: (dims, values) for name, values in columns.items()}, coords=coords, attrs=attrs)


def step_divergence(
    model: Model, written: Prompts, bare: Prompts | None = None, edits: Sequence[Edit] = ()
) -> xr.DataArray:
    """Vision-aware head divergence at every generated token, where it is predicted: dims (prompt step layer head).

    NaN behind the end of a shorter text. Both sides read the same written tokens, with and without the images; two
    passes a prompt. ``edits`` are what was in force when it was written. Source: He et al. 2025 (he2025).

    Args:
        model: the model that wrote.
        written: prompts with images and generated tokens, such as ``sk.generate`` gives.
        bare: the same without images (default :func:`without_images`).
        edits: what both sides run under.

    Raises:
        PromptError: a prompt has no generated token, or no image.
    """
    plain = bare if bare is not None else without_images(written, model)
    counts = [int((roles == ROLE_INDEX["generated"]).sum()) for roles in written.roles]
    if not counts or not all(counts):
        which = counts.index(0) if counts else 0
        raise PromptError(f"step_divergence: nothing was generated in prompt {which}. Give what sk.generate returned.")
    depth, heads, _ = _shape(model)
    found = np.full((len(counts), max(counts), depth, heads), np.nan)
    for which, count in enumerate(counts):
        # The row before a token predicts it, so the last token's own row is not read.
        full, none = (_outputs(model, side, which, count + 1, edits)[:-1] for side in (written, plain))
        found[which, :count] = metrics.head_divergence(full, none)
    dims = ("prompt", "step", "layer", "head")
    coords = {dim: np.arange(size) for dim, size in zip(dims, found.shape, strict=True)}
    attrs = {"metric": "vision_aware_head_divergence", "definition": "he2025", "reference": "he2025", "units": "1"}
    return xr.DataArray(found, dims=dims, name="divergence", coords=coords, attrs=attrs)


def token_divergence(divergences: xr.DataArray, k: int = 4) -> xr.DataArray:
    """Token score (eq. 5): the sum over layers of the ``k`` largest divergences of each layer; dims but layer and head.

    The paper does not give k; report how the score depends on it.

    Raises:
        EditError: k is below 1 or above the number of heads.
    """
    if not 1 <= k <= divergences.sizes["head"]:
        raise EditError(f"token_divergence(k={k}): this model has {divergences.sizes['head']} heads. Use 1 to that.")
    rest = [dim for dim in divergences.dims if dim != "head"]
    ranked = np.sort(divergences.transpose(*rest, "head").values, axis=-1)[..., -k:].sum(-1)
    summed = xr.DataArray(ranked, dims=rest, coords={d: divergences[d] for d in rest}).sum("layer")
    return summed.rename("token_divergence").assign_attrs(units="1", k=k)


def aware_heads(found: xr.Dataset) -> xr.DataArray:
    """Heads to reinforce, bool (prompt layer head): no outliers (eq. 6), above the median of the layer (eq. 7)."""
    order = ("prompt", "layer", "head")
    divergences, energy = (found[name].transpose(*order).values for name in ("divergence", "without_image"))
    chosen = [
        metrics.vision_aware_heads(d, np.sqrt(e)[..., None]) for d, e in zip(divergences, energy, strict=True)
    ]  # fmt: skip
    coords = {name: found[name].values for name in order}
    return xr.DataArray(np.stack(chosen), dims=order, coords=coords, name="vision_aware")


def reinforced_layers(layers: int) -> tuple[int, ...]:
    """Layers that the paper reinforces in LLaVA: the second, and the last 14 of 32; that fraction for other depths."""
    late = round(LATE_SHARE * layers)
    return tuple(sorted({min(1, layers - 1), *range(layers - late, layers)}))


@dataclass(frozen=True)
class VhrSettings:
    """What vision-aware head reinforcement fixes beforehand.

    Attributes:
        alpha: factor of the chosen heads' outputs.
        layers: layers to reinforce; None takes :func:`reinforced_layers`.
        layerwise: True is the paper's: a layer is measured after the earlier layers were reinforced, in both branches
            (two passes a layer and prompt here). False measures all layers in the untouched model with two passes.
    """

    alpha: float = 2.0
    layers: Sequence[int] | None = None
    layerwise: bool = True


@dataclass(frozen=True, eq=False)
class VhrResult(MethodResult):
    """What :func:`vhr` chose.

    Attributes:
        edits: one edit per prompt; empty selections where nothing is chosen.
        heads: bool (prompt layer head).
        found: the divergences the choice was made from, each layer measured after the layers before were reinforced.
        note: what was extrapolated, in words.
        settings: what was fixed beforehand.
    """

    reference: ClassVar[tuple[str, ...]] = ("he2025",)

    edits: tuple[GateHeads, ...]
    heads: xr.DataArray
    found: xr.Dataset
    note: str
    settings: VhrSettings

    def with_heads(self, heads: xr.DataArray) -> VhrResult:
        """Return the same edit on other heads, such as a control's or another prompt's: bool (prompt layer head)."""
        lists = [metrics.head_list(heads.isel(prompt=which)) for which in range(heads.sizes["prompt"])]
        edits = tuple(GateHeads(self.settings.alpha, heads=each, allow_empty=not each) for each in lists)
        return replace(self, edits=edits, heads=heads)

    def random_heads(self, seed: int = 0) -> VhrResult:
        """Return the control: as many other heads in each layer, drawn for each prompt."""
        drawn = [
            metrics.random_heads(self.heads.isel(prompt=which), seed + which).drop_vars("prompt", errors="ignore")
            for which in range(self.heads.sizes["prompt"])
        ]
        return self.with_heads(xr.concat(drawn, dim=self.heads["prompt"]))

    def table(self) -> pd.DataFrame:
        """Return the divergence of every reinforced head: one row per prompt, layer and head."""
        rows = self.found.where(self.heads).to_dataframe().dropna(subset=["divergence"])
        return rows.reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the mean divergence of every head, a dot where it is reinforced in at least half of the prompts."""
        from sinkscope import plot

        mean = self.found["divergence"].mean("prompt").assign_attrs(long_name="divergence without the image")
        often = self.heads.mean("prompt") >= 0.5
        return plot.effect_map(mean, marked=often, title="Vision-aware heads", ax=ax)


@method()
def vhr(
    model: Model, prompts: Prompts, settings: VhrSettings | None = None, *, bare: Prompts | None = None
) -> VhrResult:
    """Choose the heads to reinforce for each prompt, once, at the first generated word; then frozen.

    ``bare`` are the prompts without images (default :func:`without_images`).
    """
    chosen = settings or VhrSettings()
    alpha, layers = chosen.alpha, chosen.layers
    plain = bare if bare is not None else without_images(prompts, model)
    depth = find_tower(model, None).depth
    wanted = tuple(sorted({int(layer) for layer in (layers if layers is not None else reinforced_layers(depth))}))
    rows = [_one(model, prompts.subset([i]), plain.subset([i]), wanted, chosen) for i in range(len(prompts))]
    found = xr.concat([row[0] for row in rows], dim="prompt", combine_attrs="override")
    found = found.assign_coords(prompt=np.arange(len(prompts)))
    aware = xr.zeros_like(found["divergence"], dtype=bool).rename("vision_aware").copy()
    for index, (_, heads) in enumerate(rows):
        for layer, numbers in heads.items():
            aware.loc[{"prompt": index, "layer": layer, "head": numbers}] = True
    edits = tuple(GateHeads(alpha, heads=heads, allow_empty=not heads) for _, heads in rows)
    extrapolated = layers is None and depth != 32
    note = f"layers {list(wanted)} of {depth}: the paper's choice for 32 layers, scaled" if extrapolated else ""
    return VhrResult(edits, aware, found, note, chosen)


def _one(
    model: Model, prompt: Prompts, bare: Prompts, layers: tuple[int, ...], settings: VhrSettings
) -> tuple[xr.Dataset, dict[int, list[int]]]:
    heads: dict[int, list[int]] = {}
    found = divergence(model, prompt, bare)
    for layer in layers:
        if settings.layerwise and heads:
            now = divergence(model, prompt, bare, [GateHeads(settings.alpha, heads=dict(heads))])
            found = xr.where(found["layer"] == layer, now, found, keep_attrs=True).transpose("prompt", "layer", "head")
        chosen = aware_heads(found).sel(layer=layer).isel(prompt=0).values
        if chosen.any():
            heads[layer] = np.flatnonzero(chosen).tolist()
    return found, heads


def generate_reinforced(
    model: Model, prompts: Prompts, chosen: VhrResult, max_new_tokens: int = 20, **options: Any
) -> list[Prompts]:
    """Continue each prompt with its own heads reinforced; one ``Prompts`` of one prompt for each.

    Raises:
        EditError: not one edit per prompt.
    """
    if len(chosen.edits) != len(prompts):
        raise EditError(
            f"generate_reinforced: {len(prompts)} prompts but heads for {len(chosen.edits)}. Choose them anew."
        )
    return [
        generate(model, prompts.subset([i]), [edit], max_new_tokens, **options) for i, edit in enumerate(chosen.edits)
    ]
