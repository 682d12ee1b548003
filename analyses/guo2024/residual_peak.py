"""The residual peak of the first token: which optimiser and attention grow it, which sublayer makes it.

Paper: Guo et al. 2024, residual norm along training (Adam, SGD, ReLU attention) and the table of zeroed sublayers
(Llama-3.1-8B, norm of the first token at layer 24: 496, 34 without the MLP of layer 0, 27 without that of layer 1, 500
without attention). Claims: Adam grows the peak about linearly, SGD and ReLU attention do not; MLPs of the first layers
make it, attention plays no part.
Cost: none for the curves; one pass per sublayer, seconds.
Different here: three layers, width 64; the table is measured on a language model of six layers and on ``zoo:bb-3l``.
The first token sees only itself, so its norm is one number, without an interval; others vary.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from recipes import seeds
from sinkscope import zoo
from sinkscope.analysis import Study
from sinkscope.methods.secondary_mlp import mlp_of

ARMS = {"bb-3l": "Adam, softmax", "bb-3l-sgd": "SGD, softmax", "bb-3l-relu": "Adam, ReLU"}


def curve(name: str, seed: int) -> xr.DataArray:
    """Residual norm of <s> and mean of the others after the first block: dims (token, step)."""
    rows = zoo.curve(name, seed)
    values = [[row[key][0] for row in rows] for key in ("bos_residual", "other_residual")]
    return xr.DataArray(values, {"token": ["sink", "others"], "step": [row["step"] for row in rows]}, ("token", "step"))


def runs(name: str) -> xr.DataArray:
    """Curves of all seeds of an arm: dims (seed, token, step)."""
    known = zoo.seeds(name)
    return xr.concat([curve(name, seed) for seed in known], dim=xr.Variable("seed", known))


def table(study: Study, model: sk.Model, prompts: sk.Prompts) -> xr.DataArray:
    """Norms of the first token and of the others at the last block input, without each sublayer: (arm, token)."""
    layers = len(model.backend.towers[model.backend.default_tower].attention)
    site, rows, names = f"{layers - 2}.post", [], ["nothing removed"]
    names += [f"{layer} {part}" for layer in range(layers - 1) for part in ("attention", "MLP")]
    for name in names:
        layer = int(name.split()[0]) if name[0].isdigit() else None
        edits = [sk.AblateHeads(range(_heads(model)), layers=[layer])] if name.endswith("attention") else []
        slug = f"{model.id.replace(':', '-')}-{name.replace(' ', '-')}"
        handles = []
        if name.endswith("MLP") and layer is not None:
            handles = [mlp_of(model, layer).register_forward_hook(lambda _m, _a, out: out * 0)]
        norm = study.reading(slug, lambda e=edits: sk.run(model, prompts, [sk.ResidualNorm()], e))["residual_norm"]
        for handle in handles:
            handle.remove()
        norm = norm.sel(site=site)
        rows.append([float(norm.isel(key=0).mean()), float(norm.isel(key=slice(1, None)).mean())])
    return xr.DataArray(rows, {"arm": names, "token": ["sink", "others"]}, ("arm", "token"))


def _heads(model: sk.Model) -> int:
    return model.backend.towers[model.backend.default_tower].attention[0].heads


with Study(__doc__, paper="guo2024", model="zoo:lm-python") as study:
    curves = {label: runs(name) for name, label in ARMS.items()}
    own = table(study, study.model, study.texts("prose", n=8, tokens=48))
    chain = study.load("zoo:bb-3l")
    letters = study.texts("random", n=8, tokens=48, model=chain)
    small = table(study, chain, letters)
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), width_ratios=(1, 1.5, 1))
    both = xr.concat([c.sel(token="sink", drop=True).mean("seed") for c in curves.values()],
                     dim=xr.Variable("arm", list(curves)), join="outer")  # fmt: skip
    sk.plot.sweep_curve(both.interpolate_na("step"), x="step", reference=None, title="Residual norm of <s>", ax=axes[0])
    for line in axes[0].lines:
        line.set_marker("")
    axes[0].set_ylabel("l2 norm after the first block")
    for ax, (name, values) in zip(axes[1:], ((study.model.id, own), (chain.id, small)), strict=True):
        sk.plot.grouped_bars(values, ylabel="l2 norm at the last block's input", title=name, ax=ax)
        ax.tick_params(axis="x", rotation=90)
        ax.set(ylim=(0, 1.3 * float(values.max())), xlabel="sublayer taken out")
    source = own.assign_attrs(model_id=f"{study.model.id} and zoo:bb-3l arms", n_prompts=8)
    study.figure(
        figure,
        "residual_peak",
        source=source,
        says="first token (sink) and mean of the others; left: mean of all seeds",
    )

    for (label, values), claim in zip(curves.items(), ("grows", "stays flat", "stays flat"), strict=True):
        sink, others = values.sel(token="sink"), values.sel(token="others")
        times = (sink / others).isel(step=-1).values
        fits = [np.corrcoef(values["step"].values, row)[0, 1] ** 2 for row in sink.values]
        study.claim(
            "F6", f"{label}: the residual norm of <s> {claim}", paper="Adam linear to 140, others flat near 20",
            found=f"{seeds.text(sink[:, -1].values, spec='.1f')} after {int(values['step'][-1])} steps, "
            f"{', '.join(f'{t:.1f}' for t in times)} times the mean of the others, R2 of a line in the step "
            f"{', '.join(f'{f:.2f}' for f in fits)} (n = {len(times)} seeds)",
            agrees=bool(((times > 3) == (claim == "grows")).all()),
        )  # fmt: skip
    for name, values in ((study.model.id, own), (chain.id, small)):
        peak = values.sel(token="sink")
        full, times = float(peak[0]), float(peak[0]) / float(values.sel(token="others")[0])
        for part, claim in (("MLP", "An early MLP makes the peak"), ("attention", "Attention plays no part in it")):
            arms = peak[[i for i, arm in enumerate(peak["arm"].values) if arm.endswith(part)]]
            low, which = float(arms.min()), str(arms["arm"].values[int(arms.values.argmin())])
            study.claim(
                "F9", claim, paper="496; 34 and 27 without MLP 0 and 1, 500 without attention",
                found=f"{name}: {full:.1f} ({times:.1f} times the others), lowest {low:.1f}, without {which}",
                agrees=low < 0.5 * full if part == "MLP" else low > 0.75 * full,
            )  # fmt: skip
