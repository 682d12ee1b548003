"""Massive activations: where they stand, how large they are by block, whether the input changes them.

Paper: Sun et al. 2024, figures 1 and 4, the table of top values. Claims: a handful of entries in fixed dimensions at
the first token (or a delimiter) are above 100 and about 1000 times the median; they come within one early block, stay,
and vanish in the last; they hardly depend on the input.
Cost: one pass, seconds to a minute per model.
Different here: small models, where the paper's two numbers are seldom met: which entries are massive is said by a rule
without an absolute number (``definition="relative"``, this project's own). A dimension may have several plateaus, which
are found first (``metrics.massive_stages``) and judged one by one; one that stands from block 0 on is held against the
embedding, where it may be already. Curves are by dimension, as the second largest entry is now another dimension and
now another token. Intervals are over prompts. A first token that is the same in every prompt sees only itself in a
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
    """Largest magnitude of each dimension at the embedding and behind each block: dims (dim, prompt, site).

    Where a dimension is not among the top entries the smallest of these stands: it is no larger than that.
    """
    blocks = ds.sel(site=[site for site in ds["site"].values if site == "embed" or site.endswith("post")])
    size, floor = abs(blocks["top_value"]), abs(blocks["top_value"]).min("rank")
    rows = [size.where(blocks["top_dim"] == dim).max("rank").fillna(floor).reset_coords(drop=True) for dim in dims]
    return xr.concat(rows, dim=xr.Variable("dim", dims)).transpose("dim", "prompt", "site")


def draw(study: Study, ds: xr.Dataset, stages: xr.Dataset, curves: xr.DataArray) -> None:
    """Entries of one prompt in the largest stage, and each dimension by block."""
    site = f"{int(stages['first'][0])}.post"
    figure = plt.figure(figsize=(9.6, 4.6))
    figure.get_layout_engine().set(wspace=0.12)  # the space of an axis in depth is not counted
    left = figure.add_subplot(1, 2, 1, projection="3d")
    sk.plot.massive_activations_picture(ds.isel(prompt=0).sel(site=site), ax=left)
    outputs = [name for name in curves["site"].values if name != "embed"]
    named = curves.sel(site=outputs).median("prompt").rename(site="layer")
    named = named.assign_coords(dim=[f"dimension {d}" for d in curves["dim"].values])
    median = ds["median_abs"].sel(site=outputs).median("prompt").rename(site="layer")
    lines = xr.concat([named, median.expand_dims({"dim": ["median entry"]})], "dim")
    lines = lines.assign_coords(layer=[int(str(s).split(".")[0]) for s in outputs]).reset_coords(drop=True)
    sk.plot.layer_profile(
        lines, ylabel="magnitude", log=True, title="Largest entry by block output", ax=figure.add_subplot(1, 2, 2)
    )
    says = f"left: ten largest magnitudes of one prompt at {site}; right: median over prompts, by dimension"
    study.figure(figure, "massive_picture", source=ds, says=says)


def entries_at(model: sk.Model, prompts: sk.Prompts, site: str, position: int) -> np.ndarray:
    """Every entry of the residual stream at a token of each prompt: (prompt, dim)."""
    return np.stack([residual_stream(model, prompts, index)[site][position] for index in range(len(prompts))])


def variation(entries: np.ndarray) -> np.ndarray:
    """Standard deviation over mean magnitude, across prompts, of each entry: (dim,)."""
    return entries.std(0) / np.abs(entries.mean(0))


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
    judge_depth(study, ds, stages, curves)
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


def entry(curves: xr.DataArray, stage: xr.Dataset) -> xr.DataArray:
    """Magnitude behind the block where a plateau begins over that before the block: dims (prompt,)."""
    level, first = curves.sel(dim=int(stage["dim"])), int(stage["first"])
    before = f"{first - 1}.post" if first else "embed"
    return (level.sel(site=f"{first}.post") / level.sel(site=before)).reset_coords(drop=True)


def judge_depth(study: Study, ds: xr.Dataset, stages: xr.Dataset, curves: xr.DataArray) -> None:
    """When each plateau begins, how suddenly, and what is left after the last block."""
    layers, told, rises = int((curves["site"] != "embed").sum()), [], []
    for index in range(stages.sizes["stage"]):
        row = stages.isel(stage=index)
        dim, first, last = (int(row[name]) for name in ("dim", "first", "last"))
        if dim not in curves["dim"].values:
            continue
        rises.append(Estimate.times(entry(curves, row), ".2g"))
        from_what = "on entry" if first else "the embedding's"
        told.append(
            f"{dim} in blocks {first} to {last} ({float(row['magnitude']):.3g}, at least times "
            f"{rises[-1].value:.2g} {from_what})"
        )
    slowest = min(rises, key=lambda rise: rise.value)
    study.claim(
        "Fig. 4", "They come within one block", paper="one step, layer 2 of 32", number=slowest,
        found=f"times in one block, the slowest plateau; blocks 0 to {layers - 1}: {'; '.join(told)}",
        agrees=slowest.above(SUDDEN),
    )  # fmt: skip
    each = [sk.metrics.massive_stages(ds.isel(prompt=[index]))["first"] for index in range(ds.sizes["prompt"])]
    starts = xr.DataArray([float(first.min()) if first.size else np.nan for first in each], dims="prompt")
    start = Estimate.mean(starts, ".1f")
    study.claim(
        "Fig. 4", "The first comes early", paper="layer 2 of 32", number=start,
        found=f"first block of a plateau by prompt, of {layers}; block {int(stages['first'].min())} in most prompts",
        agrees=start.below(EARLY * layers),
    )  # fmt: skip
    top = curves.max("dim").sel(site=[site for site in curves["site"].values if site != "embed"])
    left = Estimate.mean((top.isel(site=-1) / top.max("site")).reset_coords(drop=True), ".2f")
    study.claim(
        "Fig. 4", "They vanish in the last block or blocks", paper="gone in the last of 32", number=left,
        found="of the largest after the last block", agrees=left.below(0.5),
    )  # fmt: skip


def judge_constancy(study: Study, model: sk.Model, prompts: sk.Prompts, stages: xr.Dataset) -> None:
    """Whether the largest entry varies with the input less than the token's other entries."""
    site, dim, position = f"{int(stages['first'][0])}.post", int(stages["dim"][0]), int(stages["at"][0])
    same = len({int(ids[0]) for ids in prompts.ids}) == 1
    sees = position > 0 or not model.is_causal or not same
    some = prompts.subset(range(min(len(prompts), 16)))
    entries = entries_at(model, some, site, position)
    spread = Estimate.resampled(lambda drawn: variation(entries[drawn, dim : dim + 1])[0], len(some), ".1%")
    others = float(np.median(np.delete(variation(entries), dim)))
    study.claim(
        "Constancy", "They hardly depend on the input", paper="variation of 5.5 %", number=spread,
        found=f"standard deviation over mean of dimension {dim} at {site}; median of the token's other entries "
        f"{others:.0%}",
        agrees=spread.below(STEADY) if sees else "the same first token in every prompt sees only itself",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="sun2024", model=(*LANGUAGE_MODELS, "minilm")) as study:
        study.for_each(judge)
