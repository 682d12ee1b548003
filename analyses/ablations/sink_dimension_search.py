"""Which residual dimension makes the sink: each is zeroed at the first token, and the sink is measured.

Claim: Sun et al. 2024, section 4, and Kang et al. 2025 name sink dimensions by their size; here they are found by what
they cause. A dimension of the first token is zeroed alone at the input of the middle block, and the key mass of the
first token in the later blocks is read. The dimension is found on one half of the texts and its effect told on the
other. Of wide models the 16 dimensions that are largest there and 8 random ones are tried, of others all.
Cost: one pass per dimension over half the blocks, 8 texts; a minute or two per model.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from common import texts

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.methods.residual import residual_stream

WIDE, LARGEST, RANDOM = 400, 16, 8


def candidates(model: sk.Model, prompts: sk.Prompts, site: str) -> tuple[list[int], int]:
    """Dimensions to try, and the one of the first token that is largest."""
    states = [residual_stream(model, prompts, index)[site][0] for index in range(len(prompts))]
    order = np.argsort(-np.abs(np.stack(states)).mean(0))
    if len(order) <= WIDE:
        return list(range(len(order))), int(order[0])
    rest = np.random.default_rng(0).choice(order[LARGEST:], RANDOM, replace=False)
    return [*order[:LARGEST].tolist(), *rest.tolist()], int(order[0])


def judge(study: Study, model: sk.Model) -> None:
    """Sweep the dimensions, rank them, and draw the first ten."""
    prompts = texts(study, 8)
    half = len(prompts) // 2
    start = max(1, len(model.backend.towers[model.backend.default_tower].attention) // 2)
    site = f"{start - 1}.post"
    dims, named = candidates(model, prompts.subset(range(half)), site)
    edits = {str(dim): [sk.SetActivations(site, dims=[dim])] for dim in dims}
    ds = study.run(prompts, [sk.KeyMass(keys="first")], edits)
    mass = ds["key_mass"].isel(key=0, layer=slice(start, None)).mean(["layer", "head"]).reset_coords(drop=True)
    plain = mass.sel(edit="baseline", drop=True)
    effect = mass.drop_sel(edit="baseline") - plain
    found, test = effect.isel(prompt=slice(half)), effect.isel(prompt=slice(half, None))
    ten = test.isel(edit=found.mean("prompt").argsort().values[:10])
    best, second = (Estimate.mean(ten.isel(edit=i, drop=True), "+.3f") for i in range(2))
    dim = int(ten["edit"].values[0])
    study.claim(
        "section 4", "One dimension carries the sink, and it is the one of the largest entry", paper="yes", number=best,
        found=f"of a key mass of {float(plain.mean()):.3f} in blocks {start} and later, dimension {dim} zeroed; the "
        f"next dimension {second}; the largest entry is in dimension {named}; {len(dims)} dimensions tried",
        agrees=dim == named and best.high < 2 * second.low if best.high < 0 else "none takes it away beyond doubt",
    )  # fmt: skip
    ten = ten.assign_coords(edit=[f"dim {d}" for d in ten["edit"].values])
    table: xr.Dataset = with_intervals(ten)
    shown = table["difference"].assign_attrs(units="attention weight", long_name="change of the sink's key mass")
    shown = sk.plot.described(shown, ds)
    title = f"{model.id}: which dimension makes the sink"
    bars = sk.plot.effect_bars(shown, interval=(table["low"], table["high"]), title=title)
    says = f"key mass of the first token, blocks {start} and later, n = {half}; 95% bootstrap intervals"
    study.figure(bars, "sink_dimension_search", source=shown, says=says)


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
