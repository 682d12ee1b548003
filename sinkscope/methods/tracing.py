"""Causal tracing: which component of which block carries the answer, for which tokens; and when the image can leave.

Fine-grained tracing (FCCT, Li et al. 2026) restores one component of a corrupted run from the clean one. The forced
exit (DyVTE) hides the visual tokens from a layer on. Both are made of ``Patch``, ``MaskKeys`` and probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.special import log_softmax

from sinkscope import metrics
from sinkscope.edits.inject import InjectWrites
from sinkscope.edits.keys import MaskKeys
from sinkscope.edits.patch import COMPONENTS, Patch, record
from sinkscope.engine.run import find_tower, run
from sinkscope.errors import EditHasNoEffect, PromptError
from sinkscope.probes import Logits
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


@method()
def trace(
    model: Model, clean: Prompts, corrupt: Prompts, answers: Sequence[int], groups: Mapping[str, Any], *,
    components: Sequence[str] = COMPONENTS,
) -> xr.Dataset:  # fmt: skip
    """Return what restoring each component of each block for each group of tokens brings back of the clean answer.

    Args:
        model: a decoder.
        clean: the prompts as they are.
        corrupt: the same tokens with other contents: pixels of noise, or other words of the same length.
        answers: the answer's token id, one per prompt.
        groups: ``{name: selection}`` of tokens, such as ``{"object": labels == "object", "last": "last"}``.
        components: of ``"attention"``, ``"mlp"`` and ``"state"``.

    ``recovery`` (prompt component layer group) is :func:`sinkscope.metrics.recovery_rate`; ``clean`` and ``corrupt``
    (prompt) the probabilities. Swap the first two for noising. Source: Li et al. 2026 (FCCT).

    Raises:
        PromptError: the prompts differ in length, or there is not one answer per prompt.
    """
    if clean.lengths != corrupt.lengths or len(answers) != len(clean):
        raise PromptError(
            f"trace: prompts of {clean.lengths} and {corrupt.lengths} tokens with {len(answers)} answers. Give pairs "
            "of one length, and one answer each."
        )
    ids = np.asarray(answers)
    layers = range(find_tower(model, None).depth)
    high, low = (_probability(model, prompts, ids) for prompts in (clean, corrupt))
    found = np.full((len(clean), len(components), len(layers), len(groups)), np.nan)
    for place, component in enumerate(components):
        sources = record(model, clean, component)
        for layer in layers:
            for column, keys in enumerate(groups.values()):
                edit = Patch(component, layer=layer, source=sources[layer], keys=keys)
                patched = _probability(model, corrupt, ids, [edit])
                found[:, place, layer, column] = metrics.recovery_rate(patched, high, low)
    coords = {"component": list(components), "layer": list(layers), "group": list(groups)}
    return xr.Dataset(
        {"recovery": (("prompt", "component", "layer", "group"), found), "clean": ("prompt", high),
         "corrupt": ("prompt", low)},
        coords={"prompt": np.arange(len(clean)), **coords}, attrs={"method": "trace", "reference": "li2026"},
    )  # fmt: skip


def injection(
    found: xr.Dataset, *, sources: int = 3, targets: int = 10, strength: Mapping[str, float] | None = None,
    group: str = "last",
) -> list[InjectWrites]:  # fmt: skip
    """Return the edits of IRI that a trace asks for: attention and MLP, each its best blocks (Li et al. 2026).

    Args:
        found: what :func:`trace` gave, over prompts that are not those of the test.
        sources: how many blocks are written again, those with the highest mean recovery rate.
        targets: how many blocks write it, by the same ranking.
        strength: by component; left out, the paper's of LLaVA-1.5.
        group: whose recovery rates count; the paper injects at the last token.

    A component with no source before a target, or without a positive rate, is left out.

    Raises:
        PromptError: the trace has no such group.
    """
    if group not in found["group"].values:
        raise PromptError(f"injection(group={group!r}): the trace has groups {found['group'].values.tolist()}.")
    edits: list[InjectWrites] = []
    for component, factor in (strength or {"attention": 0.26, "mlp": 0.16}).items():
        rates = found["recovery"].sel(component=component, group=group).mean("prompt").fillna(0.0)
        order = rates["layer"].values[np.argsort(-rates.values, kind="stable")].tolist()
        first = [layer for layer in order[:sources] if float(rates.sel(layer=layer)) > 0]
        last = [layer for layer in order[:targets] if first and layer > min(first)]
        if last:
            weights = [float(rates.sel(layer=layer)) for layer in first]
            edits.append(InjectWrites(component, sources=first, weights=weights, targets=last, strength=factor))
    return edits


def _probability(model: Model, prompts: Prompts, ids: np.ndarray, edits: Sequence[Edit] = ()) -> np.ndarray:
    logits = run(model, prompts, [Logits()], edits).logits[:, 0].values.astype(np.float64)
    return np.exp(log_softmax(logits, axis=-1)[np.arange(len(ids)), ids])


@method()
def visual_exit(
    model: Model, prompts: Prompts, answers: Sequence[int] | None = None, *, keys: Any = "image"
) -> xr.Dataset:
    """Return what changes where the visual tokens are hidden from a layer on: the forced exit of DyVTE.

    Args:
        model: a vision-language model.
        prompts: with pictures.
        answers: the token id of each prompt's answer; left out, the one that the full run says.
        keys: which tokens leave, such as others as a control.

    Variables over (prompt layer): ``agree``, whether the next token stays the same; ``divergence``, the divergence of
    the full run's next-token distribution from the one without (nat); ``loss`` of the answer, beside ``full_loss``
    (prompt). Hidden keys take the place of cut tokens: the text rows see the same. ``sk.metrics.exit_layer`` reads an
    exit off means of such curves: of ``agree``, and of ``loss`` over that of ``full_loss``.

    Raises:
        PromptError: not one answer per prompt.
        EditHasNoEffect: the prompts hold no such token, no image for one.
    """
    depth = find_tower(model, None).depth
    full = log_softmax(run(model, prompts, [Logits()]).logits[:, 0].values.astype(np.float64), axis=-1)
    ids = full.argmax(-1) if answers is None else np.asarray(answers)
    if len(ids) != len(prompts):
        raise PromptError(f"visual_exit: {len(prompts)} prompts with {len(ids)} answers. Give one token id each.")
    rows = np.arange(len(ids))
    agree, divergence, loss = (np.full((len(prompts), depth), np.nan) for _ in range(3))
    for layer in range(depth):
        edit = MaskKeys(keys, layers=range(layer, depth), queries="after_image")
        try:
            logits = run(model, prompts, [Logits()], [edit]).logits[:, 0].values.astype(np.float64)
            without = log_softmax(logits, axis=-1)
        except EditHasNoEffect:
            # From layer 0 on it had one, so there are such tokens: these layers do not read them, and nothing changes.
            if layer == 0:
                raise
            without = full
        agree[:, layer] = without.argmax(-1) == full.argmax(-1)
        divergence[:, layer] = (np.exp(full) * (full - without)).sum(-1)
        loss[:, layer] = -without[rows, ids]
    dims = ("prompt", "layer")
    coords = {"prompt": np.arange(len(prompts)), "layer": np.arange(depth)}
    attrs = {"method": "visual_exit", "reference": "dyvte"}
    data = {"agree": (dims, agree), "divergence": (dims, divergence), "loss": (dims, loss)}
    return xr.Dataset(data | {"full_loss": ("prompt", -full[rows, ids])}, coords=coords, attrs=attrs)
