"""Active and dormant heads: one that sleeps on prose and works on code.

Paper: Guo et al. 2024, the two-domain figure (Llama-2-7B, layer 16, head 25: attention on the first token in Wikipedia
text, elsewhere in GitHub code). Claims: such a switch exists; zeroing the head costs loss where it is active only.
Cost: one pass per domain for all heads, and one per zeroed head, under a minute.
Different here: all heads are searched, on one half of the prompts; the other half tests the choice. Prose is SciPy's
docstrings. Controls: the other heads of the same layer, zeroed one at a time. Intervals and tests are over prompts (two
independent samples, bootstrap; false discoveries controlled over heads).
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

import sinkscope as sk
from sinkscope.analysis import Study

DOMAINS = ("prose", "code")


def contrast(code: np.ndarray, prose: np.ndarray) -> tuple[float, float, float]:
    """Difference of the means of two samples and its 95 % bootstrap interval."""
    if np.ptp(code) == 0 and np.ptp(prose) == 0:
        return (float(code.mean() - prose.mean()),) * 3
    found = stats.bootstrap((code, prose), lambda a, b, axis: a.mean(axis) - b.mean(axis), rng=0, method="percentile")
    return float(code.mean() - prose.mean()), *map(float, found.confidence_interval)


def halves(array: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Prompts to choose on, prompts to test on."""
    return array.isel(prompt=slice(0, None, 2)), array.isel(prompt=slice(1, None, 2))


with Study(__doc__, paper="guo2024") as study:
    model = study.model
    prompts = {kind: study.texts(kind, n=96, tokens=64) for kind in DOMAINS}
    maps = {
        kind: study.reading(kind, lambda p=p: sk.run(model, p, [sk.KeyMass(), sk.TokenLoss()], batch_size=8))
        for kind, p in prompts.items()
    }
    mass = {kind: halves(ds["key_mass"].isel(key=0).reset_coords(drop=True)) for kind, ds in maps.items()}
    chosen_on = [mass[kind][0].mean("prompt") for kind in ("code", "prose")]
    gap = chosen_on[0] - chosen_on[1]
    test = [mass[kind][1].transpose("prompt", "layer", "head").values for kind in ("code", "prose")]
    p = stats.ttest_ind(*test, equal_var=False).pvalue
    q = stats.false_discovery_control(np.nan_to_num(p, nan=1.0).ravel()).reshape(p.shape)
    layer, head = (int(i) for i in np.unravel_index(int(gap.values.argmin()), gap.shape))
    switch = contrast(test[0][:, layer, head], test[1][:, layer, head])

    count = maps["code"].sizes["head"]
    costs = {}
    for number in [head, *(h for h in range(count) if h != head)]:
        edit = [sk.AblateHeads({layer: [number]})]
        for kind in DOMAINS:
            name = f"{kind}-without-{layer}-{number}"
            ds = study.reading(
                name, lambda p=prompts[kind], e=edit: sk.run(model, p, [sk.TokenLoss()], e, batch_size=8)
            )
            loss = (ds["token_loss"] - maps[kind]["token_loss"]).mean("query")
            costs[number, kind] = halves(loss)[1].values

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    tested = (mass["code"][1].mean("prompt") - mass["prose"][1].mean("prompt")).assign_attrs(
        long_name="code minus prose"
    )
    marked = xr.DataArray(q < 0.05, dims=("layer", "head"), coords=tested.coords)
    sk.plot.effect_map(tested, marked=marked, title="Attention on the first token", ax=axes[0])
    table = xr.DataArray(
        [[costs[h, kind].mean() for kind in DOMAINS] for h in range(count)],
        {"head": [f"head {h}" + (" (switch)" if h == head else "") for h in range(count)], "domain": list(DOMAINS)},
        ("head", "domain"),
    )
    spread = np.array([[1.96 * stats.sem(costs[h, kind]) for kind in DOMAINS] for h in range(count)])
    sk.plot.grouped_bars(
        table, interval=(table - spread, table + spread), ylabel="change of the loss [nat]",
        title=f"Heads of layer {layer} zeroed", ax=axes[1],
    )  # fmt: skip
    says = f"tested on {len(test[0])} prompts per domain; dots: q < 0.05 (Welch, false discovery rate); 95 % intervals"
    study.figure(figure, "active_dormant", source=maps["code"].assign_attrs(n_prompts=len(test[0])), says=says)

    n = len(test[0])
    means = [values[:, layer, head].mean() for values in test]
    study.claim(
        "F10", "A head is dormant on prose and active on code", paper="L16H25 of Llama-2-7B (maps)",
        found=f"layer {layer}, head {head}: attention on the first token {means[1]:.3f} in prose, {means[0]:.3f} in "
        f"code, difference {switch[0]:+.3f} [{switch[1]:+.3f}, {switch[2]:+.3f}]; {int((q < 0.05).sum())} of {q.size} "
        f"heads differ at q < 0.05 (n = {n} prompts each, not those it was chosen on)",
        agrees=switch[2] < 0 and means[1] > 0.5 and means[0] < 0.5,
    )  # fmt: skip
    own = contrast(costs[head, "code"], costs[head, "prose"])
    rest = [contrast(costs[h, "code"], costs[h, "prose"])[0] for h in range(count) if h != head]
    study.claim(
        "F10", "Zeroing it costs loss on code, hardly on prose", paper="GitHub loss rises clearly, Wikipedia's hardly",
        found=f"{costs[head, 'code'].mean():+.3f} nat on code, {costs[head, 'prose'].mean():+.3f} on prose, difference "
        f"{own[0]:+.3f} [{own[1]:+.3f}, {own[2]:+.3f}]; other heads of the layer {min(rest):+.3f} to {max(rest):+.3f} "
        f"(n = {n} prompts each)", agrees=own[1] > 0 and own[0] > max(rest),
    )  # fmt: skip
