"""HeadHunter and SoftPAG: heads chosen by rounds for an aim, and how far their maps are mixed with the identity.

Paper: Ahn et al. 2025 (arXiv 2506.10978), on diffusion models: a few heads, chosen one by one for an objective, serve
guidance better than whole layers; mixing a map with the identity, (1 - s) A + s I, is a dose between none and full
perturbation. Claims: heads chosen so change more than as many others; the effect grows with s.
Cost: one pass per head and round over eight short prompts: a minute for the 24 heads of the zoo's model; a round over
the 270 heads of SmolLM2 is five minutes, so that one is asked by ``--model``.
Different here: language models. The objective is the loss that the perturbed model has, since guidance steers away from
it; heads are chosen on other prompts than they are judged on. Guided, the log probabilities are those of the plain
model plus w times what the perturbation takes away; the w is chosen on the first prompts too, among those above 0, a
rule set after a first run on the same prompts, in which 0 was best. Controls: as many heads of the same layers drawn at
random. Intervals are over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from scipy.special import log_softmax

import sinkscope as sk
from sinkscope.analysis import Estimate, Study, need, with_intervals
from sinkscope.engine.run import find_tower
from sinkscope.methods.head_hunter import head_hunter

COUNT, DRAWS, DOSES, WEIGHTS = 3, 5, (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.1, 0.2, 0.4, 0.8)


def mixed(heads: dict[int, list[int]], s: float = 1.0) -> sk.edits.Edit:
    """Mix the maps of some heads with the identity."""
    return sk.MixIdentity(s, heads=heads)


def drawn(found: xr.Dataset, tower_heads: int, draw: int) -> dict[int, list[int]]:
    """As many other heads of the same layers."""
    chosen: dict[int, list[int]] = {}
    for layer, head in zip(found["layer"].values.tolist(), found["head"].values.tolist(), strict=True):
        chosen.setdefault(layer, []).append(head)
    rng = np.random.default_rng(draw)
    return {
        layer: rng.choice([h for h in range(tower_heads) if h not in heads], len(heads), replace=False).tolist()
        for layer, heads in chosen.items()
    }


def guided_loss(model: sk.Model, prompts: sk.Prompts, edits: list[sk.edits.Edit]) -> np.ndarray:
    """Loss of the guided prediction: (weight prompt)."""
    out = np.zeros((len(WEIGHTS), len(prompts)))
    for index in range(len(prompts)):
        one, target = prompts.subset([index]), np.asarray(prompts.ids[index])[1:]
        probe = [sk.Logits(positions="all")]
        plain, pushed = (
            log_softmax(sk.run(model, one, probe, given)["logits"].values[0, :-1], axis=-1) for given in ([], edits)
        )
        for row, weight in enumerate(WEIGHTS):
            guided = log_softmax(plain + weight * (plain - pushed), axis=-1)
            out[row, index] = -float(guided[np.arange(len(target)), target].mean())
    return out


def measured(study: Study, model: sk.Model) -> xr.Dataset:
    """Choose on the first half, judge on the second."""
    tower, count = find_tower(model, None), 2 if study.quick else COUNT
    heads = max(site.heads for site in tower.attention)
    kind = "code" if model.id.startswith("zoo:lm-") else "prose"
    texts = study.texts(kind, n=24, tokens=48)
    first, second = texts.subset(range(len(texts) // 3)), texts.subset(range(len(texts) // 3, len(texts)))

    def worse(ds: xr.Dataset) -> xr.DataArray:
        return ds["token_loss"].mean(["prompt", "query"])

    found = head_hunter(model, first, mixed, worse, [sk.TokenLoss()], count=count)
    chosen: dict[int, list[int]] = {}
    for layer, head in zip(found["layer"].values.tolist(), found["head"].values.tolist(), strict=True):
        chosen.setdefault(layer, []).append(head)
    sets = {"chosen": chosen} | {f"random {draw}": drawn(found, heads, draw) for draw in range(DRAWS)}
    edits = {f"{name} {s}": [mixed(which, s)] for name, which in sets.items() for s in DOSES if s}
    ds = sk.sweep(model, second, edits, [sk.TokenLoss()], baseline=True, batch_size=6)
    loss = ds["token_loss"].mean("query").reset_coords(drop=True)
    cost = loss - loss.sel(edit="baseline", drop=True)
    table = xr.concat(
        [
            xr.concat([cost.sel(edit=f"{name} {s}", drop=True) if s else xr.zeros_like(cost.isel(edit=0, drop=True))
                       for s in DOSES], dim=xr.Variable("s", list(DOSES)))
            for name in sets
        ],
        dim=xr.Variable("heads", list(sets)),
    )  # fmt: skip
    guide = {
        f"guided_{part}": (("set", "weight", f"{part}_prompt"), np.array([
            guided_loss(model, prompts, [mixed(sets[name])]) for name in ("chosen", "random 0")
        ]))
        for part, prompts in (("first", first), ("second", second))
    }  # fmt: skip
    coords = {"set": ["chosen", "random"], "weight": list(WEIGHTS)}
    return xr.Dataset({"cost": table} | guide, coords).assign(
        layer=found["layer"], head=found["head"], value=found["value"]
    ).assign_attrs(ds.attrs)  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw and judge one model."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    ds = study.reading("hunted", lambda: measured(study, model))
    cost = ds["cost"]
    both = xr.concat([cost.sel(heads="chosen", drop=True), cost.drop_sel(heads="chosen").mean("heads")],
                     dim=xr.Variable("heads", ["chosen by rounds", "others of the same layers"]))  # fmt: skip
    table = with_intervals(both)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    names = [f"L{layer}H{head}" for layer, head in zip(ds["layer"].values, ds["head"].values, strict=True)]
    shown = table["difference"].assign_attrs(long_name="change of the loss", units="nat")
    sk.plot.sweep_curve(shown, x="s", interval=(table["low"], table["high"]), reference=None,
                        title=f"Mixed with the identity: {', '.join(names)}", ax=left)  # fmt: skip
    guided = ds["guided_second"] - ds["guided_second"].sel(weight=0.0, drop=True)
    rows = with_intervals(guided, over="second_prompt").rename(set="heads")
    sk.plot.sweep_curve(
        rows["difference"].assign_attrs(long_name="change of the loss", units="nat"), x="weight",
        interval=(rows["low"], rows["high"]), reference=None, title="Steered away from the perturbed model", ax=right,
    )  # fmt: skip
    study.figure(
        figure, "head_hunter", source=ds, says=f"{len(names)} heads chosen on other prompts, maps (1 - s) A + s I; "
        f"controls: mean of {DRAWS} draws (left), one draw (right); bands: 95 % intervals over prompts",
    )  # fmt: skip

    full = both.sel(s=1.0, drop=True)
    more = Estimate.paired(full.isel(heads=0, drop=True), full.isel(heads=1, drop=True), "+.3f", "nat")
    study.claim(
        "head selection", "Heads chosen by rounds change more than as many others", paper="a few heads serve best",
        number=more, found=f"{', '.join(names)} less other heads of the same layers, on prompts they were not chosen "
        f"on; loss by round {', '.join(f'{value:.2f}' for value in ds['value'].values)} nat", agrees=more.above(0.0),
    )  # fmt: skip
    dose = both.isel(heads=0, drop=True)
    steps = Estimate.paired(dose.sel(s=1.0, drop=True), dose.sel(s=0.5, drop=True), "+.3f", "nat")
    mean = dose.mean("prompt").values
    study.claim(
        "SoftPAG", "The effect grows with s", paper="a continuous dose", number=steps,
        found=f"s 1 less s .5; by s {', '.join(f'{value:+.3f}' for value in mean)} nat",
        agrees=bool((np.diff(mean) > 0).all()) if steps.above(0.0) is True else steps.above(0.0),
    )  # fmt: skip
    best = max(1, int(ds["guided_first"].sel(set="chosen").mean("first_prompt").argmin("weight")))
    gain = Estimate.mean(guided.sel(set="chosen").isel(weight=best, drop=True), "+.4f", "nat")
    study.claim(
        "guidance", "Steering away from the perturbed model predicts better", paper="pictures, diffusion", number=gain,
        found=f"w {WEIGHTS[best]}, of those above 0 the best on the prompts of the choice", agrees=gain.below(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="ahn2025", model="zoo:lm-python") as study:
        study.for_each(judge)
