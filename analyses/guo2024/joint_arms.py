"""Who makes the peak, layer by layer and jointly: attention, MLP and both of the first blocks taken out.

Paper: Guo et al. 2024, figures F7 and F9 (Llama-3.1-8B, norm of the first token at layer 24: 496; without the attention
of block 0 500, its MLP 34, both 57; of block 1 500, 27, 27; of both blocks 30; any of block 2 496). Claims: a joint arm
with the peak's MLP in it loses the peak, one with attention alone keeps it. Cost: ten passes over 8 texts, a minute or
two. Different here: read where the first token's norm is largest against the others'; blocks from 0 to the first one
whose MLP takes half the norm away, and the one after it.

    python analyses/guo2024/joint_arms.py --model smollm2-135m
"""

from __future__ import annotations

from contextlib import ExitStack

import xarray as xr
from residual_peak import mlp

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study
from sinkscope.engine.run import find_tower

PARTS = {"attention": (True, False), "MLP": (False, True), "both": (True, True)}


def without(model: sk.Model, prompts: sk.Prompts, layers: list[int], part: str) -> xr.DataArray:
    """Residual norms behind the blocks, the sublayers of ``layers`` writing nothing."""
    attention, feed = PARTS[part]
    heads = range(find_tower(model, None).attention[0].heads)
    edits = [sk.AblateHeads(heads, layers=layers)] if attention and layers else []
    with ExitStack() as stack:
        for layer in layers if feed else []:
            stack.callback(mlp(model, layer).register_forward_hook(lambda _module, _args, out: out * 0).remove)
        found = sk.run(model, prompts, [sk.ResidualNorm()], edits)["residual_norm"]
    return found.sel(site=[site for site in found["site"].values if site.endswith("post")])


def said(maker: int) -> str:
    """The blocks from 0 to the maker, as the names of the joint arms have them."""
    return f"0 to {maker}" if maker else "0"


def measured(model: sk.Model, prompts: sk.Prompts) -> xr.Dataset:
    """Norm of the first token (arm prompt) where its peak is, and mean of the others."""
    plain = sk.run(model, prompts, [sk.ResidualNorm()])
    norms = without(model, prompts, [], "both")
    ratio = (norms.isel(key=0) / norms.isel(key=slice(1, None)).median("key")).median("prompt")
    site = str(ratio["site"].values[int(ratio.values.argmax())])
    last = int(site.split(".")[0])
    rows, names, maker = [norms.sel(site=site)], ["nothing"], last
    for layer in range(last + 1):
        arms = {part: without(model, prompts, [layer], part).sel(site=site) for part in PARTS}
        rows += arms.values()
        names += [f"{part} {layer}" for part in PARTS]
        lost = float((arms["MLP"].isel(key=0) / rows[0].isel(key=0)).mean())
        if lost < 0.5 and maker == last:
            maker = layer
        if layer > maker:
            break
    for part in PARTS if maker else ():  # with one block the joint arms are its own
        rows.append(without(model, prompts, list(range(maker + 1)), part).sel(site=site))
        names.append(f"{part} {said(maker)}")
    norm = xr.concat([row.reset_coords(drop=True) for row in rows], xr.Variable("arm", names))
    found = {"sink": norm.isel(key=0), "others": norm.isel(key=slice(1, None)).mean("key")}
    return xr.Dataset(found, attrs=plain.attrs | {"site": site, "maker": maker})


def judge(study: Study, model: sk.Model) -> None:
    """Draw the bars and judge the joint arms."""
    prompts = study.texts("prose", n=4 if study.quick else 8, tokens=24, model=model)
    ds = study.reading("arms", lambda: measured(model, prompts))
    mean = ds["sink"].mean("prompt").rename("norm").assign_attrs(units="1", long_name="norm of the first token")
    axes = sk.plot.effect_bars(sk.plot.described(mean, ds), title=f"{model.id}, sublayers out, at {ds.attrs['site']}")
    study.figure(axes, "joint_arms", source=ds, says="mean over prompts of the first token's residual norm")
    maker, full = ds.attrs["maker"], ds["sink"].sel(arm="nothing", drop=True)
    claims = {"both": "Without the first blocks the peak is gone", "attention": "Without their attention it stays"}
    for part, claim in claims.items():
        share = (ds["sink"].sel(arm=f"{part} {said(maker)}", drop=True) / full).reset_coords(drop=True)
        left = Estimate.mean(share, ".2f")
        each = ", ".join(f"{name} {float(mean.sel(arm=name)):.0f}" for name in mean["arm"].values.tolist())
        study.claim(
            "F9, joint arms", claim, paper="30 without blocks 0 and 1, 496 with; 500 without attention", number=left,
            found=f"of the norm, block{'s' if maker else ''} {said(maker)}; {each}",
            agrees=left.value < 0.5 if part == "both" else left.value > 0.75,
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="guo2024", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
