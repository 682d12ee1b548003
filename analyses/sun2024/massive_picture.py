"""Massive activations: where they stand, how large they are by layer, whether the input changes them.

Paper: Sun et al. 2024, figures 1 and 4, the table of top values. Claims: a handful of entries in fixed dimensions at
the first token (or a delimiter) are above 100 and about 1000 times the median; they come within one early layer and
stay; they hardly depend on the input.
Cost: one pass, seconds.
Different here: small models, where the paper's two numbers are seldom met: the largest ratio is reported, and a rule
without an absolute number (``definition="relative"``) beside the paper's. In a decoder the first token sees only
itself, so nothing can vary there; constancy is judged where the carrier sees the text (an encoder).
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.methods.residual import residual_stream


def variation(model: sk.Model, prompts: sk.Prompts, site: str, position: int) -> xr.DataArray:
    """Standard deviation over mean magnitude, across prompts, of each entry at a token: dims (dim,)."""
    rows = np.stack([residual_stream(model, prompts, index)[site][position] for index in range(len(prompts))])
    return xr.DataArray(rows.std(0) / np.abs(rows.mean(0)), dims="dim")


def study_of(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    prompts = study.texts("prose", n=32, tokens=64)
    ds = study.reading("massive", lambda: sk.run(model, prompts, [sk.MassiveActivations()], batch_size=8))
    blocks = ds.sel(site=[s for s in ds["site"].values if s.endswith("post")])
    first = blocks.isel(rank=0)
    ratio = (abs(first["top_value"]) / first["median_abs"]).mean("prompt")
    site = str(ratio["site"].values[int(ratio.values.argmax())])
    at = first.sel(site=site)
    pairs = list(zip(at["top_position"].values.astype(int), at["top_dim"].values.astype(int), strict=True))
    position, dim = max(set(pairs), key=pairs.count)
    same = pairs.count((position, dim)) / len(pairs)

    figure = plt.figure(figsize=(11.5, 4.8))
    left = figure.add_subplot(1, 2, 1, projection="3d")
    sk.plot.massive_activations_picture(ds.isel(prompt=0).sel(site=site), ax=left)
    top, median = abs(blocks["top_value"]).mean("prompt"), blocks["median_abs"].mean("prompt")
    sk.plot.top_values_by_layer(top, median, ax=figure.add_subplot(1, 2, 2))
    says = f"left: ten largest magnitudes of one prompt at {site}; right: mean over prompts of the largest, by block"
    study.figure(figure, "massive_picture", source=ds, says=says)

    n, size = ds.sizes["prompt"], float(abs(at["top_value"]).mean())
    strict, loose = (sk.metrics.massive_activations(blocks, name)["massive"] for name in ("sun2024", "relative"))
    study.claim(
        "Fig. 1", "Entries above 100 and 1000 times the median", paper="LLaMA2-7B: about 2000 against 0.2",
        found=f"{model.id}: largest {size:.3g}, {float(ratio.max()):.0f} times the median, at {site}; "
        f"{int(strict.sum())} entries by the paper's rule, {int(loose.sum())} by the relative rule (n = {n} prompts)",
        agrees=bool(strict.any()),
    )  # fmt: skip
    study.claim(
        "Location table", "In fixed dimensions, at the first token or a delimiter", paper="dims 1415 and 2533",
        found=f"{model.id}: in {same:.0%} of {n} prompts dimension {dim} at position {position} "
        f"({str(ds['token'].values[0, position])!r})", agrees=same >= 0.9,
    )  # fmt: skip
    profile = top.isel(rank=0).values
    jump = profile[1:] / profile[:-1]
    layer = int(jump.argmax()) + 1
    study.claim(
        "Fig. 4", "They come within one early layer, stay, and vanish in the last", paper="layer 2 to 30 of 32",
        found=f"{model.id}: largest step at block {layer} of {len(profile)}, times {jump.max():.1f}; after the last "
        f"block {profile[-1] / profile.max():.2f} of the largest", agrees=bool(jump.max() > 3 and layer <= 3)
        and bool(profile[-1] < 0.5 * profile.max()),
    )  # fmt: skip
    spread = variation(model, prompts, site, position)
    sees = position > 0 or not model.is_causal
    others = float(spread.drop_isel(dim=dim).median())
    study.claim(
        "Constancy", "They hardly depend on the input", paper="variation of 5.5 %",
        found=f"{model.id}: standard deviation {float(spread[dim]):.1%} of the mean, median of the token's other "
        f"entries {others:.0%} (n = {n} prompts)" + ("" if sees else "; this token sees only itself"),
        agrees=float(spread[dim]) < 0.2 * others if sees else None,
    )  # fmt: skip


with Study(__doc__, paper="sun2024", model=("zoo:lm-python", "minilm")) as study:
    for model in study.each():
        study_of(study, model)
