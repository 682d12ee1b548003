"""Sinks after the first token: in which layers, and at which tokens?

Paper: Yu et al. 2024 (ACT), attention maps and sink counts by layer (axes as third parties describe them). Claims:
attention sinks also stand at later tokens, mainly in middle layers, and there at tokens that mean little:
punctuation and line breaks.
Cost: one pass per prompt, seconds.
Different here: a sink is a key with a mean attention above 0.1 (the released code's threshold) that at least eight
queries can see; without that bound the last tokens of a text count, which few queries average. Held-out source code for
models of the zoo. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals

MEANINGLESS = ("punctuation", "newline")


def judge(study: Study, model: sk.Model) -> None:
    """Count the sinks by layer, and say which tokens they are."""
    kind = "code" if model.id.startswith("zoo:lm-") else "prose"
    ds = study.run(study.texts(kind), [sk.KeyMass()])
    sinks = sk.metrics.sink_mask(ds, "act_absolute", min_queries=8)
    later = sinks.isel(key=slice(1, None))
    counts = later.sum("key").mean("head")
    roles = ds["token_role"].isel(key=slice(1, None))
    low_meaning = roles.isin(MEANINGLESS)
    real = (roles != "pad") & (np.arange(roles.sizes["key"]) < roles.sizes["key"] - 8)
    among = (later & low_meaning).sum(["layer", "head", "key"]) / later.sum(["layer", "head", "key"])
    everywhere = (low_meaning & real).sum("key") / real.sum("key")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    mean = counts.mean("prompt").rename("sinks").assign_attrs(units="1", long_name="sinks per head")
    spread = with_intervals(counts)
    sk.plot.layer_profile(mean, band=(spread["low"], spread["high"]), title="Sinks after the first token", ax=left)
    shares = xr.concat([among, everywhere], xr.Variable("tokens", ["sinks", "all tokens"])).reset_coords(drop=True)
    bars = with_intervals(shares)
    sk.plot.grouped_bars(
        bars["difference"], interval=(bars["low"], bars["high"]), ylabel="share of punctuation and line breaks",
        title="What they are", ax=right,
    )  # fmt: skip
    says = "keys after the first with mean attention above 0.1, seen by 8 queries or more; 95 % intervals over prompts"
    study.figure(figure, "other_sinks", source=ds, says=says)

    layers = np.array_split(mean.values, 3)
    thirds = [float(part.mean()) for part in layers]
    middle = counts.isel(layer=slice(len(layers[0]), len(layers[0]) + len(layers[1]))).mean("layer")
    rest = counts.isel(layer=[*range(len(layers[0])), *range(len(layers[0]) + len(layers[1]), counts.sizes["layer"])])
    apart = Estimate.paired(middle.reset_coords(drop=True), rest.mean("layer").reset_coords(drop=True), "+.2f")
    study.claim(
        "sinks by layer", "Sinks after the first token stand mainly in middle layers", paper="middle, in LLaMA-2",
        number=apart, agrees=apart.above(0.0), found=f"sinks per head in the middle third of the layers less the other "
        f"two; {thirds[0]:.2f}, {thirds[1]:.2f}, {thirds[2]:.2f} in the first, middle and last third",
    )  # fmt: skip
    need(model, bool((among.notnull()).sum() > 2), "sinks after the first token in more than two prompts")
    more = Estimate.paired(*(100 * share.reset_coords(drop=True) for share in (among, everywhere)), "+.0f", "points")
    study.claim(
        "sink tokens", "They are tokens that mean little", paper="punctuation, line breaks", number=more,
        found=f"{float(among.mean()):.0%} punctuation and line breaks among sinks, {float(everywhere.mean()):.0%} of "
        "all tokens", agrees=more.above(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="yu2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
