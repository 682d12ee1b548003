"""Massive activations: where they stand, how large they are by block, whether the input changes them.

Paper: Sun et al. 2024, figures 1 and 4, the table of top values. Claims: a handful of entries in fixed dimensions at
the first token (or a delimiter) are above 100 and about 1000 times the median; they come within one early block, stay,
and vanish in the last; they hardly depend on the input.
Cost: one pass, seconds to a minute per model.
Different here: small models, where the paper's two numbers are seldom met: which entries are massive is said by a rule
without an absolute number (``definition="relative"``, this project's own). A dimension may have several plateaus, which
are found first (``metrics.massive_stages``) and judged one by one; curves are by dimension, as the second largest entry
is now another dimension and now another token. A first token that is the same in every prompt sees only itself in a
decoder, so nothing can vary there.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need
from sinkscope.methods.residual import residual_stream

DELIMITERS = ("punctuation", "newline")
EARLY = 1 / 4
"""Part of the depth that counts as early: block 8 of 32."""
STEADY = 0.1
"""Most standard deviation over mean that counts as hardly depending on the input; the paper's is 0.055."""
SUDDEN = 3.0
"""Least factor from one block to the next that counts as coming within one block."""


def by_dimension(ds: xr.Dataset, dims: list[int]) -> xr.DataArray:
    """Largest magnitude of each dimension by block output, median over prompts: dims (dim, site).

    Where a dimension is not among the top entries the smallest of these stands: it is no larger than that.
    """
    blocks = ds.sel(site=[site for site in ds["site"].values if site.endswith("post")])
    size, floor = abs(blocks["top_value"]), abs(blocks["top_value"]).min("rank")
    rows = [
        size.where(blocks["top_dim"] == dim).max("rank").fillna(floor).median("prompt").reset_coords(drop=True)
        for dim in dims
    ]
    return xr.concat(rows, dim=xr.Variable("dim", dims))


def draw(study: Study, ds: xr.Dataset, stages: xr.Dataset, curves: xr.DataArray) -> None:
    """Entries of one prompt in the largest stage, and each dimension by block."""
    site = f"{int(stages['first'][0])}.post"
    figure = plt.figure(figsize=(11.5, 4.8))
    left = figure.add_subplot(1, 2, 1, projection="3d")
    sk.plot.massive_activations_picture(ds.isel(prompt=0).sel(site=site), ax=left)
    named = curves.assign_coords(dim=[f"dimension {d}" for d in curves["dim"].values]).rename(site="layer")
    median = ds["median_abs"].sel(site=curves["site"].values).median("prompt").rename(site="layer")
    lines = xr.concat([named, median.expand_dims({"dim": ["median entry"]})], "dim")
    lines = lines.assign_coords(layer=[int(str(s).split(".")[0]) for s in curves["site"].values]).reset_coords(
        drop=True
    )
    sk.plot.layer_profile(
        lines, ylabel="magnitude", log=True, title="Largest entry by block output", ax=figure.add_subplot(1, 2, 2)
    )
    says = f"left: ten largest magnitudes of one prompt at {site}; right: median over prompts, by dimension"
    study.figure(figure, "massive_picture", source=ds, says=says)


def variation(model: sk.Model, prompts: sk.Prompts, site: str, position: int) -> xr.DataArray:
    """Standard deviation over mean magnitude, across prompts, of each entry at a token: dims (dim,)."""
    rows = np.stack([residual_stream(model, prompts, index)[site][position] for index in range(len(prompts))])
    return xr.DataArray(rows.std(0) / np.abs(rows.mean(0)), dims="dim")


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = study.texts("prose")
    ds = study.run(prompts, [sk.MassiveActivations()])
    stages = sk.metrics.massive_stages(ds)
    need(model, stages.sizes["stage"] > 0, "massive activations; the relative rule finds none in this model")
    dims = list(dict.fromkeys(stages["dim"].values.tolist()))[:4]
    curves = by_dimension(ds, dims)
    draw(study, ds, stages, curves)

    strict = sk.metrics.massive_activations(ds, "sun2024")["massive"]
    ratio = abs(ds["top_value"].isel(rank=0)) / ds["median_abs"]
    best = Estimate.mean(ratio.max("site"), ".0f", "medians")
    study.claim(
        "Fig. 1", "Entries above 100 and 1000 times the median", paper="LLaMA2-7B: about 2000 against 0.2", number=best,
        found=f"the largest entry, magnitude {float(abs(ds['top_value']).max()):.3g}; {int(strict.sum())} entries by "
        f"the paper's rule, dimensions {dims} by the relative rule", agrees=bool(strict.any()),
    )  # fmt: skip
    where = location(ds)
    study.claim(
        "Location table", "In fixed dimensions, at the first token or a delimiter", paper="dims 1415 and 2533",
        number=where, found=f"of the massive entries of dimensions {dims}", agrees=where.above(0.8),
    )  # fmt: skip
    judge_depth(study, stages, curves)
    judge_constancy(study, model, prompts, stages)


def location(ds: xr.Dataset) -> Estimate:
    """Share of each prompt's massive entries that stand at the first token or a delimiter."""
    massive = sk.metrics.massive_activations(ds, "relative")["massive"].transpose("prompt", "site", "rank").values
    position = ds["top_position"].transpose("prompt", "site", "rank").fillna(0).values.astype(int)
    roles = ds["token_role"].transpose("prompt", "key").values
    hit = (position == 0) | np.isin(np.take_along_axis(roles[:, None], position, axis=2), DELIMITERS)
    counts = massive.sum((1, 2))
    share = np.divide((hit & massive).sum((1, 2)), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return Estimate.mean(xr.DataArray(share, dims="prompt"), ".0%")


def judge_depth(study: Study, stages: xr.Dataset, curves: xr.DataArray) -> None:
    """When each plateau begins, how suddenly, and what is left after the last block."""
    layers, told, rises = curves.sizes["site"], [], []
    for index in range(stages.sizes["stage"]):
        row = stages.isel(stage=index)
        dim, first, last = (int(row[name]) for name in ("dim", "first", "last"))
        if dim not in curves["dim"].values:
            continue
        level = curves.sel(dim=dim).values
        rises.append(level[first] / level[first - 1] if first else np.inf)
        told.append(
            f"{dim} in blocks {first} to {last} ({float(row['magnitude']):.3g}, "
            f"at least times {rises[-1]:.2g} on entry)"
        )
    start = int(stages["first"].min())
    study.claim(
        "Fig. 4", "They come within one block", paper="one step, layer 2 of 32",
        found=f"blocks 0 to {layers - 1}: {'; '.join(told)}", agrees=min(rises) >= SUDDEN,
    )  # fmt: skip
    study.claim(
        "Fig. 4", "The first comes early", paper="layer 2 of 32",
        found=f"block {start} of {layers}", agrees=start < EARLY * layers,
    )  # fmt: skip
    top = curves.max("dim").values
    study.claim(
        "Fig. 4", "They vanish in the last block or blocks", paper="gone in the last of 32",
        found=f"after the last block {top[-1] / top.max():.2f} of the largest", agrees=bool(top[-1] < 0.5 * top.max()),
    )  # fmt: skip


def judge_constancy(study: Study, model: sk.Model, prompts: sk.Prompts, stages: xr.Dataset) -> None:
    """Whether the largest entry varies with the input less than the token's other entries."""
    site, dim, position = f"{int(stages['first'][0])}.post", int(stages["dim"][0]), int(stages["at"][0])
    same = len({int(ids[0]) for ids in prompts.ids}) == 1
    sees = position > 0 or not model.is_causal or not same
    some = prompts.subset(range(min(len(prompts), 16)))
    spread = variation(model, some, site, position)
    others = float(spread.drop_isel(dim=dim).median())
    study.claim(
        "Constancy", "They hardly depend on the input", paper="variation of 5.5 %",
        found=f"dimension {dim} at {site}: standard deviation {float(spread[dim]):.1%} of the mean, median of the "
        f"token's other entries {others:.0%} (n = {len(some)} prompts)",
        agrees=float(spread[dim]) < STEADY if sees else "the same first token in every prompt sees only itself",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
