"""The demo's first story: a pretrained language model that people know, SmolLM2-135M-Instruct, on short texts.

Who is the sink, where its massive activation is born and dies, what happens to its values, and what each of them does
to the prediction of the next token, by edits with controls. Every number it says is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sinkscope import schema
from sinkscope.cli.figures import draw_changes, draw_stages
from sinkscope.edits import Edit, MaskKeys, SetActivations, mean_activations
from sinkscope.engine.run import run
from sinkscope.engine.sweep import sweep
from sinkscope.metrics import compare, sink_rate
from sinkscope.probes import KeyMass, TokenLoss
from sinkscope.prompts import Prompts
from sinkscope.report.text import percent
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

NAME = "smollm2-135m"
RATIO = 100
"""A dimension is called massive in a block where its magnitude at the first token is so many times the median there.

The bound of this project; Sun et al. (2024) ask for 1000, which blocks 2 to 8 of this model do not reach.
"""

DELIMITERS = ("punctuation", "newline")

CONTROLS = 3
SEED = 0


@dataclass(frozen=True)
class Stage:
    """A run of blocks in which one dimension is massive at the first token.

    ``dim`` is the dimension, ``first`` and ``last`` the blocks at whose output it has at least half of ``peak``, its
    largest magnitude, and ``tokens`` the other tokens (prompt, position) at which it has at least half of the first's.
    """

    dim: int
    first: int
    last: int
    peak: float
    tokens: list[tuple[int, int]]


def tell(model: Model, prompts: Prompts, texts: list[str], ds: xr.Dataset, output: Path) -> list[tuple[str, str]]:
    """Give the findings of the story, heading and text; write its figures and the reading of the causal test."""
    traced = trace(ds)
    found = stages(traced)
    draw_stages(traced, ds, output / f"{NAME}-stages.png")
    told = [
        ("The first token, whatever it is", with_token_in_front(model, texts, ds)),
        ("Where the massive activation is born and dies", tell_stages(found, ds)),
        ("Secondary sinks", secondary(found, ds)),
    ]
    return [*told, *(causal(model, prompts, found[-1], output) if found else [])]


def with_token_in_front(model: Model, texts: list[str], ds: xr.Dataset) -> str:
    """Compare the sink rate of the first token with and without a token of its own in front of the text."""
    fronted = run(model, Prompts.from_texts(texts, model, add_bos=True), [KeyMass(keys="first")], batch_size=8)
    plain, other = float(sink_rate(ds).mean()), float(sink_rate(fronted).mean())
    words = {str(token) for token in ds["token"].isel(key=0).values}
    front = str(fronted["token"].isel(prompt=0, key=0).item())
    moves = other > plain / 2
    return (
        f"The first token gets more than .3 of the attention in {percent(plain)} of the {ds.sizes['layer']} x "
        f"{ds.sizes['head']} heads, and it is just the text's first word ({len(words)} different ones in "
        f"{ds.sizes['prompt']} texts). With a token of its own in front ({front}) that token gets it in "
        f"{percent(other)} of the heads: "
        + ("the place decides, not the word." if moves else "the word decides too, not the place alone.")
    )


def trace(ds: xr.Dataset) -> xr.Dataset:
    """Magnitude of the leading dimension at the first token, at the output of every block.

    The leading dimension is the one with the largest magnitude at the first token anywhere. Variables: ``value`` and
    ``median`` (layer), medians over prompts; ``others`` (prompt layer rank), magnitudes of the same dimension at other
    tokens, and ``position`` of these. A magnitude that is not among the ranked entries is NaN.
    """
    outputs = ds.sel(site=[site for site in ds["site"].values.tolist() if site.endswith(".post")])
    size, first = abs(outputs["top_value"]), outputs["top_position"] == 0
    at_first = size.where(first)
    best = at_first.where(at_first == at_first.max(), drop=True)
    dim = int(outputs["top_dim"].sel(prompt=best["prompt"], site=best["site"], rank=best["rank"]).values.ravel()[0])
    same = outputs["top_dim"] == dim
    layers = [int(str(site).partition(".")[0]) for site in outputs["site"].values]
    found = xr.Dataset(
        {
            "value": size.where(same & first).max("rank").median("prompt"),
            "median": outputs["median_abs"].median("prompt"),
            "others": size.where(same & ~first),
            "position": outputs["top_position"],
        },
        attrs=ds.attrs | {"dim": dim},
    )
    return found.assign_coords(layer=("site", layers)).swap_dims(site="layer").drop_vars("site")


def stages(traced: xr.Dataset) -> list[Stage]:
    """Find the runs of blocks in which the traced dimension is massive at the first token."""
    value = traced["value"].fillna(0).values
    high = value > RATIO * traced["median"].values
    edges = np.flatnonzero(np.diff(np.concatenate([[False], high, [False]]).astype(int)))
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        peak = value[start:end].max()
        inside = start + np.flatnonzero(value[start:end] >= peak / 2)
        span = traced.isel(layer=inside)
        near = (span["others"] >= span["value"] / 2).transpose("prompt", "layer", "rank").values
        places = span["position"].transpose("prompt", "layer", "rank").values
        tokens = sorted({(int(p), int(places[p, n, r])) for p, n, r in np.argwhere(near)})
        found.append(Stage(int(traced.attrs["dim"]), int(inside[0]), int(inside[-1]), float(peak), tokens))
    return found


def tell_stages(found: list[Stage], ds: xr.Dataset) -> str:
    """Say where the massive activation is born and dies, and which other tokens have it."""
    if not found:
        return f"No dimension passes {RATIO} times the median at the first token."
    said = []
    for stage in found:
        words = [str(ds["token"].isel(prompt=p, key=k).item()) for p, k in stage.tokens]
        common = sorted(set(words), key=lambda word: (-words.count(word), word))[:5]
        others = "at the first token alone" if not words else (
            f"at the first token and at {len(words)} others ({', '.join(map(repr, common))} most often)"
        )  # fmt: skip
        said.append(f"in blocks {stage.first} to {stage.last}, up to {stage.peak:,.0f}, {others}")
    return f"Dimension {found[0].dim} is massive {'; and again '.join(said)}."


def secondary(found: list[Stage], ds: xr.Dataset) -> str:
    """Say how much attention the other tokens of a stage get in its blocks, against all tokens that lack it."""
    stage = next((stage for stage in found if stage.tokens), None)
    if stage is None:
        return "No token but the first has the massive dimension."
    mass = ds["key_mass"].sel(layer=slice(stage.first + 1, stage.last)).mean(["layer", "head"])
    marked = xr.zeros_like(mass, dtype=bool)
    for prompt, position in stage.tokens:
        marked.loc[{"prompt": prompt, "key": position}] = True
    theirs, first = float(mass.where(marked).mean()), float(mass.isel(key=0).mean())
    rest = float(mass.where(~marked & (mass["key"] > 0)).mean())
    delimiters = ds["token_role"].where(marked).isin([ROLE_INDEX[role] for role in DELIMITERS]).sum()
    return (
        f"In blocks {stage.first + 1} to {stage.last} these {len(stage.tokens)} tokens, {int(delimiters)} of them "
        f"punctuation or line breaks, get {percent(theirs)} of the attention of the tokens after them on average, the "
        f"first token {percent(first)} and all others {percent(rest)}."
    )


def causal_edits(
    model: Model, prompts: Prompts, stage: Stage, layers: int
) -> tuple[dict[str, Sequence[Edit]], list[str]]:
    """Make the edits of the causal test and name those that are controls.

    The massive dimension is changed where its last stage begins, at the first token: to zero, and to its mean over the
    texts (Sun et al. 2024, Table 3); controls are other dimensions. The first token is masked in a third of the layers,
    or in all; controls mask one token at a position drawn at random.
    """
    draw, site = np.random.default_rng(SEED), f"{stage.first}.post"
    width = int(model.config.get_text_config().hidden_size)
    mean = mean_activations(model, prompts, site, stage.dim, batch_size=8)
    others = sorted(int(d) for d in draw.choice(np.setdiff1d(np.arange(width), [stage.dim]), CONTROLS, replace=False))
    edits: dict[str, Sequence[Edit]] = {
        f"dim {stage.dim} to zero": [SetActivations(site, dims=[stage.dim])],
        f"dim {stage.dim} to its mean": [SetActivations(site, dims=[stage.dim], value=mean)],
    }
    edits |= {f"dim {d} to zero": [SetActivations(site, dims=[d])] for d in others}
    third = layers // 3
    parts = {
        "early": range(third), "middle": range(third, 2 * third), "late": range(2 * third, layers),
        "all layers": range(layers),
    }  # fmt: skip
    shortest = min(len(ids) for ids in prompts.ids)
    place = int(draw.integers(shortest // 4, shortest * 3 // 4))
    edits |= {f"first token masked, {part}": [MaskKeys("first", layers=list(span))] for part, span in parts.items()}
    masked = {f"token {place} masked, {part}": [MaskKeys([place], layers=list(span))] for part, span in parts.items()}
    return edits | masked, [*(f"dim {d} to zero" for d in others), *masked]


def causal(model: Model, prompts: Prompts, stage: Stage, output: Path) -> list[tuple[str, str]]:
    """Run the causal test; write its reading and figure, and say what each edit costs in nats a token."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    edits, controls = causal_edits(model, prompts, stage, layers)
    swept = sweep(model, prompts, {"none": [], **edits}, [TokenLoss(), KeyMass()], batch_size=8)
    schema.save(swept, output / f"{NAME}-causal.nc", overwrite=True)
    change = compare(swept["token_loss"].mean("query"), to="none")
    draw_changes(change, swept, controls, output / f"{NAME}-causal.png")

    def cost(label: str) -> str:
        found = change.sel(edit=label)
        low, mid, high = (float(found[name]) for name in ("low", "difference", "high"))
        return f"{mid:+.3f} [{low:.3f}, {high:.3f}]"

    zero, mean = list(edits)[:2]
    worst = _largest(change, [label for label in controls if label.startswith("dim")])
    constant = float(abs(change["difference"].sel(edit=mean))) < 0.1 * float(change["difference"].sel(edit=zero))
    dims = (
        f"{zero}: {cost(zero)} nats a token; {mean}: {cost(mean)} (95% intervals over {int(change['n'].max())} texts). "
        f"{CONTROLS} dimensions drawn at random, set to zero: at most {at_most(worst)}. "
        + ("The model needs the number, not how it varies." if constant else "Its variation matters too.")
    )
    masks = [label for label in edits if label.startswith("first")]
    random = _largest(change, [label for label in controls if label.startswith("token")])
    masked = (
        "; ".join(f"{label.partition(', ')[2]}: {cost(label)}" for label in masks)
        + f" nats a token. Masking a token at random: at most {at_most(random)}. "
        + _where_it_goes(swept, masks[-1], stage)
    )
    return [(f"What dimension {stage.dim} is needed for", dims), ("Masking the first token", masked)]


def at_most(value: float) -> str:
    """Write a bound with three digits, rounded up: what is above it cannot be said to be at most that."""
    return f"{math.ceil(1000 * value) / 1000:.3f}"


def _largest(change: xr.Dataset, labels: list[str]) -> float:
    return float(abs(change["difference"].sel(edit=labels)).max())


def _where_it_goes(swept: xr.Dataset, label: str, stage: Stage) -> str:
    """Say which other token gets the most attention once the first is masked everywhere, and how much it had."""
    late = swept["key_mass"].sel(layer=slice(stage.first + 1, None)).mean(["layer", "head"])
    # The last three tokens are seen by so few queries that one may give them much by chance.
    inner = (late["key"] > 0) & (late["key"] < swept["token"].notnull().sum("key") - 3)
    place = late.sel(edit=label).where(inner).fillna(-1).argmax("key")
    gained, had = (late.sel(edit=name).isel(key=place).mean() for name in (label, "none"))
    return (
        f"With the first token masked everywhere, the most attended other token of each text gets "
        f"{percent(float(gained))} of the attention in the blocks after {stage.first}; it had {percent(float(had))}. "
        f"It stands at positions {int(place.min())} to {int(place.max())}, at median {float(place.median()):.0f}."
    )
