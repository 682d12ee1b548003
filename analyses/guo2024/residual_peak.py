"""The residual peak of the first token: which optimiser and attention grow it, which sublayer makes it.

Paper: Guo et al. 2024, residual norm along training (Adam, SGD, ReLU attention) and the table of zeroed sublayers
(Llama-3.1-8B, norm of the first token at layer 24: 496, 34 without the MLP of layer 0, 27 without that of layer 1, 500
without attention). Claims: Adam grows the peak about linearly, SGD and ReLU attention do not; MLPs of the first layers
make it, attention plays no part.
Cost: none for the curves; one pass per sublayer, two minutes per language model.
Different here: curves of models of three layers, width 64, at the block where the first token's norm is largest against
the others'. The table is measured at that block too, sublayers up to it taken out one by one; "early" is the first half
of them. A first token that is the same in every prompt sees only itself, so its norm is one number.
"""

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes

import sinkscope as sk
from recipes import seeds
from sinkscope import zoo
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, with_intervals
from sinkscope.engine.run import find_tower
from sinkscope.errors import UnsupportedModelError
from sinkscope.methods.secondary_mlp import MLP_NAMES

ARMS = {"bb-3l": ("Adam, softmax", True), "bb-3l-sgd": ("SGD, softmax", False), "bb-3l-relu": ("Adam, ReLU", False)}
"""Runs of the zoo: what is said of them, and whether the paper says that the peak grows."""


def curve(name: str, seed: int) -> xr.DataArray:
    """Residual norm of <s> and mean of the others after the block where their ratio is largest: dims (token, step)."""
    rows = zoo.curve(name, seed)
    pairs = np.array([[row["bos_residual"], row["other_residual"]] for row in rows])
    peak = (pairs[:, 0] / pairs[:, 1]).argmax(-1)
    values = pairs[np.arange(len(rows)), :, peak].T
    return xr.DataArray(values, {"token": ["sink", "others"], "step": [row["step"] for row in rows]}, ("token", "step"))


def runs(name: str) -> xr.DataArray:
    """Curves of all seeds of an arm: dims (seed, token, step)."""
    known = zoo.seeds(name)
    return xr.concat([curve(name, seed) for seed in known], dim=xr.Variable("seed", known))


def mlp(model: sk.Model, layer: int) -> torch.nn.Module:
    """The MLP of a block; a norm without bias behind it gives nothing where it gives nothing."""
    block = model.model.get_submodule(find_tower(model, None).blocks[layer].path)
    for name in MLP_NAMES:
        if isinstance(getattr(block, name, None), torch.nn.Module):
            return getattr(block, name)
    raise UnsupportedModelError(f"{model.id}: block {layer} has no MLP named {' or '.join(MLP_NAMES)} to take out.")


def table(model: sk.Model, prompts: sk.Prompts) -> xr.Dataset:
    """Norm of the first token (arm prompt) and mean of the others where the peak is highest, without each sublayer.

    ``site`` among the attributes is that block output.
    """
    plain = sk.run(model, prompts, [sk.ResidualNorm()])
    norms = plain["residual_norm"].sel(site=[s for s in plain["site"].values if s.endswith("post")])
    ratio = (norms.isel(key=0) / norms.isel(key=slice(1, None)).median("key")).median("prompt")
    site = str(ratio["site"].values[int(ratio.values.argmax())])
    last, heads = int(site.split(".")[0]), find_tower(model, None).attention[0].heads
    rows, names = [norms.sel(site=site)], ["nothing"]
    for layer in range(last + 1):
        edit = [sk.AblateHeads(range(heads), layers=[layer])]
        rows.append(sk.run(model, prompts, [sk.ResidualNorm()], edit)["residual_norm"].sel(site=site))
        handle = mlp(model, layer).register_forward_hook(lambda _module, _args, out: out * 0)
        try:
            rows.append(sk.run(model, prompts, [sk.ResidualNorm()])["residual_norm"].sel(site=site))
        finally:
            handle.remove()
        names += [f"attention {layer}", f"MLP {layer}"]
    norm = xr.concat([row.reset_coords(drop=True) for row in rows], xr.Variable("arm", names))
    found = {"sink": norm.isel(key=0), "others": norm.isel(key=slice(1, None)).mean("key")}
    return xr.Dataset(found, attrs=plain.attrs | {"site": site})


def by_layer(norm: xr.DataArray) -> xr.DataArray:
    """Norm of the first token (arm prompt) by what is out and in which layer: dims (out layer prompt)."""
    layers = range((norm.sizes["arm"] - 1) // 2)
    arms = [[f"{part} {layer}" for layer in layers] for part in ("attention", "MLP")] + [["nothing"] * len(layers)]
    rows = [norm.sel(arm=row).values for row in arms]
    labels = {"out": ["attention out", "MLP out", "nothing out"], "layer": list(layers)}
    return xr.DataArray(rows, labels, ("out", "layer", "prompt"))


def draw(norm: xr.DataArray, site: str, title: str) -> Axes:
    """Lines over the layers, bars where the peak stands behind the first block already."""
    table = with_intervals(by_layer(norm))
    said = f"norm of the first token at {site}"
    if table.sizes["layer"] > 1:
        edges = (table["low"], table["high"])
        return sk.plot.layer_profile(table["difference"], band=edges, ylabel=said, title=title)
    one = table.isel(layer=0, drop=True).sel(out=["nothing out", "attention out", "MLP out"])
    edges = (one["low"], one["high"])
    axes = sk.plot.grouped_bars(one["difference"], interval=edges, ylabel=said, title=title)
    axes.set_xlabel("of layer 0")
    return axes


def judge(study: Study, model: sk.Model) -> None:
    """Take out each sublayer of a model, draw the peak, say what makes it."""
    n = 4 if study.quick else 8
    prompts = study.texts("random" if model.id.startswith("zoo:bb") else "prose", n=n, tokens=24, model=model)
    ds = study.reading("peak", lambda: table(model, prompts))
    axes = draw(ds["sink"], ds.attrs["site"], f"{model.id}, one sublayer out")
    study.figure(axes, "sublayers", source=ds, says="mean over prompts, 95 % intervals")
    full = ds["sink"].sel(arm="nothing", drop=True)
    times, last = float((full / ds["others"].sel(arm="nothing")).mean()), int(ds.attrs["site"].split(".")[0])
    for part, claim in (("MLP", "An early MLP makes the peak"), ("attention", "Attention plays no part in it")):
        share = (ds["sink"].sel(arm=[f"{part} {layer}" for layer in range(last + 1)]) / full).reset_coords(drop=True)
        which = str(share["arm"].values[int(share.mean("prompt").values.argmin())])
        low = Estimate.mean(share.sel(arm=which, drop=True), ".2f")
        early = int(which.split()[1]) <= last / 2
        study.claim(
            "F9", claim, paper="496; 34 and 27 without MLP 0 and 1, 500 without attention", number=low,
            found=f"of the norm without {which}, the largest loss; {float(full.mean()):.1f} at {ds.attrs['site']}, "
            f"{times:.1f} times the others",
            agrees=(low.value < 0.5 and early) if part == "MLP" else low.value > 0.75,
        )  # fmt: skip


def trained(study: Study) -> None:
    """Draw and judge the norm along training."""
    curves = {label: runs(name) for name, (label, _) in ARMS.items()}
    both = xr.concat(
        [c.sel(token="sink", drop=True).mean("seed") for c in curves.values()],
        dim=xr.Variable("arm", list(curves)), join="outer",
    )  # fmt: skip
    axes = sk.plot.sweep_curve(both.interpolate_na("step"), x="step", reference=None, title="Residual norm of <s>")
    for line in axes.lines:
        line.set_marker("")
    axes.set_ylabel("l2 norm at its peak")
    source = both.assign_attrs(model_id=", ".join(f"zoo:{name}" for name in ARMS), n_prompts=64)
    study.figure(
        axes, "training", source=source, says="first token, at the block of the largest ratio, mean over seeds"
    )
    for name, (label, grows) in ARMS.items():
        study.subject = f"zoo:{name}"
        sink, others = curves[label].sel(token="sink"), curves[label].sel(token="others")
        times = (sink / others).isel(step=-1).values
        mean, ends = seeds.mean_and_interval(times)
        found = Estimate(mean, *(ends or (mean, mean)), len(times), "", ".1f")
        fits = [np.corrcoef(sink["step"].values, row)[0, 1] ** 2 for row in sink.values]
        study.claim(
            "F6", f"{label}: the residual norm of <s> {'grows' if grows else 'stays flat'}", number=found,
            paper="Adam linear to 140, others flat near 20", agrees=found.above(3.0) if grows else found.below(3.0),
            found=f"times the others' after {int(sink['step'][-1])} steps ({', '.join(f'{t:.1f}' for t in times)} by "
            f"seed); norm {seeds.text(sink[:, -1].values, spec='.1f')}, R2 of a line in the step "
            f"{', '.join(f'{f:.2f}' for f in fits)}",
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="guo2024", model=(*LANGUAGE_MODELS, "zoo:bb-3l")) as study:
        study.for_each(judge)
        trained(study)
