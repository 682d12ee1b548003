"""Does masking visual sinks hurt less than masking as many random or relevant visual tokens?

After Kang et al. 2025 (fig. 3b): rows after the image may not read the masked keys. Four arms with the same number of
tokens in each prompt: the visual sinks (phi at a threshold), random visual tokens (several draws, one draw for all
layers), the visual tokens that get the most attention among those that are no sinks, and nothing. The damage is the
loss of log probability of the plain model's own answer, paired by prompt, with bootstrap intervals.

    python analyses/visual/mask_sinks.py --out mask_sinks.nc

Without a model the planted one is used: there the answer is built in (sinks carry next to no value), so the figure
only shows that the comparison can tell. Evidence needs a trained model: pass ``measure`` your own model and prompts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.methods.examples import Examples, answer_score
from sinkscope.methods.var import VarSettings, sink_dims, tau_of
from sinkscope.model import Model
from sinkscope.prompts import Prompts


def masks(model: Model, prompts: Prompts, draws: int = 5, seed: int = 0) -> dict[str, xr.DataArray]:
    """Which keys each arm hides: bool (prompt key). Sinks are those of the block input at half the depth."""
    dims = sink_dims(model, prompts)
    reading = sk.run(model, prompts, [sk.SinkDims(dims), sk.KeyMass()])
    middle = reading.sizes["layer"] // 2
    every = metrics.phi_sinks(reading, tau=tau_of(model, VarSettings()), roles="image")
    sinks = metrics.at_block_inputs(every, [middle]).isel(layer=0, drop=True)
    arms = {"sinks": sinks}
    drawn = metrics.matched_controls(sinks, seed, draws, roles="image")
    arms |= {f"random {i}": drawn.isel(draw=i, drop=True) for i in range(draws)}
    arms["relevant"] = most_read(reading["key_mass"].mean(["layer", "head"]), sinks)
    return arms


def most_read(mass: xr.DataArray, sinks: xr.DataArray) -> xr.DataArray:
    """As many visual tokens as there are sinks: those that get the most attention and are no sinks."""
    image = (sinks["token_role"] == "image").transpose("prompt", "key").values
    found = np.zeros(image.shape, dtype=bool)
    for row, (weights, taken) in enumerate(zip(mass.transpose("prompt", "key").values, sinks.values, strict=True)):
        free = np.where(image[row] & ~taken, weights, -np.inf)
        found[row, np.argsort(-free, kind="stable")[: int(taken.sum())]] = True
    return sinks.copy(data=found)


def measure(model: Model, prompts: Prompts, draws: int = 5, seed: int = 0) -> xr.Dataset:
    """Damage of each arm, and sinks against each of the others: ``damage`` (arm prompt), differences with intervals.

    Prompts without a visual sink are left out; ``n`` says how many stay.
    """
    arms = masks(model, prompts, draws, seed)
    kept = np.flatnonzero(arms["sinks"].any("key").values).tolist()
    if len(kept) < 2:
        raise sk.PromptError(f"mask_sinks: {len(kept)} prompts have a visual sink. Give at least two that do.")
    prompts = prompts.subset(kept)
    plain = sk.run(model, prompts, [sk.Logits()])["logits"].isel(position=-1)
    examples = Examples(prompts, tuple(plain.argmax("vocab").values.tolist()))
    base = answer_score(model, examples)["log_probability"]
    rows = {}
    for name, keys in arms.items():
        here = keys.isel(prompt=kept).assign_coords(prompt=np.arange(len(kept)))
        edit = sk.MaskKeys(here, queries="after_image")
        rows[name] = base - answer_score(model, examples, [edit])["log_probability"]
    random = xr.concat([rows[name] for name in rows if name.startswith("random")], dim="draw").mean("draw")
    damage = {"sinks": rows["sinks"], "random": random, "relevant": rows["relevant"]}
    result = xr.Dataset({"damage": xr.concat(list(damage.values()), dim="arm").assign_coords(arm=list(damage))})
    for name in ("random", "relevant"):
        against = metrics.compare(damage["sinks"], to=damage[name])
        for part in ("difference", "low", "high", "p_value"):
            result[f"{part}_{name}"] = against[part]
    result.attrs = {
        "units": "nat", "n": len(kept), "draws": draws, "seed": seed, "model_id": model.id,
        "masked_per_prompt": float(arms["sinks"].isel(prompt=kept).sum("key").mean()),
    }  # fmt: skip
    return result


def describe(result: xr.Dataset) -> str:
    """The result in words."""
    means = result["damage"].mean("prompt")
    lines = [
        f"{result.attrs['model_id']}: {result.attrs['n']} prompts, {result.attrs['masked_per_prompt']:g} tokens each"
    ]
    lines += [f"  masking {arm}: {float(means.sel(arm=arm)):+.4f} nat lost" for arm in result["arm"].values.tolist()]
    for name in ("random", "relevant"):
        found, low, high, p = (float(result[f"{part}_{name}"]) for part in ("difference", "low", "high", "p_value"))
        lines.append(f"  sinks minus {name}: {found:+.4f} nat [{low:+.4f}, {high:+.4f}], p = {p:.3g}")
    return "\n".join(lines)


def planted_results(family: str, seeds: range) -> list[xr.Dataset]:
    """The comparison on the planted models, each with its own pictures."""
    return [measure(*sk.testing.planted_visual_sink(seed, family)[:2]) for seed in seeds]


def main() -> None:
    """Run on the planted models and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="llava", choices=("llava", "qwen2_5_vl"))
    parser.add_argument("--seeds", type=int, default=3, help="planted models")
    parser.add_argument("--out", type=Path, help="write the numbers to this netCDF file")
    options = parser.parse_args()
    results = planted_results(options.family, range(options.seeds))
    for result in results:
        print(describe(result))
    print("Planted models: the sinks' values were made nearly zero, so this shows the method, not a fact about models.")
    if options.out:
        joined = xr.concat(results, dim="model", combine_attrs="drop")
        joined.assign_coords(model=[r.attrs["model_id"] for r in results]).to_netcdf(options.out, engine="h5netcdf")


if __name__ == "__main__":
    main()
