"""Active and dormant heads: one that sleeps on prose and works on code.

Paper: Guo et al. 2024, the two-domain figure (Llama-2-7B, layer 16, head 25: attention on the first token in Wikipedia
text, elsewhere in GitHub code). Claims: such a switch exists; zeroing the head costs loss where it is active only.
Cost: one pass per domain for all heads, and one per zeroed head, two minutes per language model.
Different here: all heads are searched, on one half of the prompts; the other half tests the choice. Maps are of that
half's code with most signs and its prose with fewest. Prose is SciPy's docstrings. Controls: three other heads of
the same layer, zeroed one at a time. Intervals and tests are over prompts (two independent samples, bootstrap; false
discoveries controlled over heads).
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy import stats

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need
from sinkscope.roles import ROLE_INDEX

DOMAINS = ("code", "prose")
OTHERS, SHOWN = 3, 20


def contrast(code: np.ndarray, prose: np.ndarray, unit: str = "") -> Estimate:
    """Difference of the means of two samples and its 95 % bootstrap interval."""
    middle, ends = float(code.mean() - prose.mean()), (float(code.mean() - prose.mean()),) * 2
    if np.ptp(code) or np.ptp(prose):
        found = stats.bootstrap(
            (code, prose), lambda a, b, axis: a.mean(axis) - b.mean(axis), rng=0, method="percentile"
        )
        ends = tuple(map(float, found.confidence_interval))
    return Estimate(middle, *ends, len(code), unit, "+.3f")


def search(study: Study, prompts: dict[str, sk.Prompts]) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """Attention on the first token: code less prose on the first halves (layer head), and all of the second halves."""
    found = {kind: study.run(p, [sk.KeyMass()])["key_mass"].isel(key=0) for kind, p in prompts.items()}
    found = {kind: mass.reset_coords(drop=True).transpose("prompt", "layer", "head") for kind, mass in found.items()}
    first, second = ({k: mass.isel(prompt=slice(start, None, 2)) for k, mass in found.items()} for start in (0, 1))
    return first["code"].mean("prompt") - first["prose"].mean("prompt"), second


def costs(study: Study, prompts: sk.Prompts, layer: int, heads: list[int]) -> np.ndarray:
    """Change of the loss with each head of a layer zeroed, on the second half of the prompts: (head, prompt)."""
    test = prompts.subset(range(1, len(prompts), 2))
    edits = {str(head): [sk.AblateHeads({layer: [head]})] for head in heads}
    loss = study.run(test, [sk.TokenLoss()], edits)["token_loss"].mean("query")
    return (loss.sel(edit=[str(h) for h in heads]) - loss.sel(edit="baseline")).transpose("edit", "prompt").values


def draw(
    study: Study, test: dict[str, xr.DataArray], q: np.ndarray, lost: dict[str, np.ndarray], names: list[str]
) -> None:
    """Map of the difference over heads, and the cost of the zeroed ones."""
    tested = test["code"].mean("prompt") - test["prose"].mean("prompt")
    tested = tested.assign_attrs(long_name="code minus prose")
    figure, axes = plt.subplots(1, 2, figsize=(9.6, max(4.4, 0.24 * tested.sizes["layer"])))
    marked = xr.DataArray(q < 0.05, dims=("layer", "head"), coords=tested.coords)
    sk.plot.effect_map(tested, marked=marked, title="Attention on the first token", ax=axes[0])
    labels = {"head": names, "domain": list(DOMAINS)}
    table = xr.DataArray(np.stack([lost[kind].mean(1) for kind in DOMAINS], 1), labels, ("head", "domain"))
    spread = np.stack([1.96 * stats.sem(lost[kind], axis=1) for kind in DOMAINS], 1)
    sk.plot.grouped_bars(
        table, interval=(table - spread, table + spread), ylabel="change of the loss [nat]", title="One head zeroed",
        ax=axes[1],
    )  # fmt: skip
    n = test["code"].sizes["prompt"]
    source = tested.assign_attrs(model_id=study.subject, n_prompts=n)
    says = f"tested on {n} prompts per domain; dots: q < 0.05 (Welch, false discovery rate); 95 % intervals"
    study.figure(figure, "active_dormant", source=source, says=says)


def typical(prompts: sk.Prompts, kind: str) -> int:
    """The test prompt that looks most like its domain: with most punctuation and line breaks for code, or fewest."""
    signs = [ROLE_INDEX["punctuation"], ROLE_INDEX["newline"]]
    counts = {at: int(np.isin(prompts.roles[at][:SHOWN], signs).sum()) for at in range(1, len(prompts), 2)}
    return (max if kind == "code" else min)(counts, key=lambda at: counts[at])


def maps(study: Study, prompts: dict[str, sk.Prompts], layer: int, head: int) -> None:
    """Attention map of the switch on one test prompt of each domain."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.8), layout="constrained")
    shown = None
    for kind, ax in zip(DOMAINS, axes, strict=True):
        shown = study.run(prompts[kind].subset([typical(prompts[kind], kind)]), [sk.AttentionMap([layer], [head])])
        one = shown["attention"].isel(prompt=0, layer=0, head=0, query=slice(0, SHOWN), key=slice(0, SHOWN))
        sk.plot.attention_map(one, title=f"Layer {layer}, head {head} on {kind}", ax=ax)
    says = (
        f"the first {SHOWN} tokens of one prompt of each domain that the head was not chosen on: the code with most "
        "signs in them, the prose with fewest"
    )
    assert shown is not None
    study.figure(figure, "maps", source=shown, says=says)


def judge(study: Study, model: sk.Model) -> None:
    """Find the switch on one half of the prompts, test it on the other, zero it."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    prompts = {kind: study.texts(kind, n=32, tokens=64) for kind in DOMAINS}
    gap, test = search(study, prompts)
    p = stats.ttest_ind(test["code"].values, test["prose"].values, equal_var=False).pvalue
    q = stats.false_discovery_control(np.nan_to_num(p, nan=1.0).ravel()).reshape(p.shape)
    layer, head = (int(i) for i in np.unravel_index(int(np.nanargmin(gap.values)), gap.shape))
    heads = [head, *[h for h in range(gap.sizes["head"]) if h != head][:OTHERS]]
    lost = {kind: costs(study, prompts[kind], layer, heads) for kind in DOMAINS}
    names = [f"L{layer}H{h}" + (" (switch)" if h == head else "") for h in heads]
    draw(study, test, q, lost, names)
    maps(study, prompts, layer, head)

    at = {kind: values.isel(layer=layer, head=head).values for kind, values in test.items()}
    switch, means = contrast(at["code"], at["prose"]), {kind: float(values.mean()) for kind, values in at.items()}
    study.claim(
        "F10", "A head is dormant on prose and active on code", paper="L16H25 of Llama-2-7B (maps)", number=switch,
        found=f"layer {layer}, head {head}: attention on the first token {means['prose']:.3f} in prose, "
        f"{means['code']:.3f} in code, on other prompts than it was chosen on; {int((q < 0.05).sum())} of {q.size} "
        "heads differ at q < 0.05", agrees=switch.high < 0 and means["prose"] > 0.5 and means["code"] < 0.5,
    )  # fmt: skip
    own = contrast(lost["code"][0], lost["prose"][0], "nat")
    rest = [contrast(*(lost[kind][i] for kind in DOMAINS)).value for i in range(1, len(heads))]
    study.claim(
        "F10", "Zeroing it costs loss on code, hardly on prose", paper="GitHub loss rises clearly, Wikipedia's hardly",
        number=own, found=f"code less prose; {lost['code'][0].mean():+.3f} nat on code, {lost['prose'][0].mean():+.3f} "
        f"on prose; other heads of the layer {min(rest):+.3f} to {max(rest):+.3f}",
        agrees=own.above(max(0.0, *rest)) if switch.high < 0 else "no head switches",
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="guo2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
