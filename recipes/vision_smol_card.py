"""Put the vision-language model of pretrained parts into the zoo: what was trained of it, and a card."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import xarray as xr
from scipy import stats

import sinkscope as sk
from recipes import vision_smol, vision_smol_makers
from recipes import vision_smol_model as parts
from recipes.facts import claim
from recipes.run_files import command, read_curve, write
from sinkscope import metrics
from sinkscope.analysis.masking import ARMS, costs_nothing, masking_damage
from sinkscope.errors import MetricError
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.models.sources import resolve
from sinkscope.models.sources.assembled import ADAPTER, PARTS, checkpoint, read_parts
from sinkscope.tasks import photo_scenes
from sinkscope.tasks import scenes as data
from sinkscope.tasks.scene_questions import scene_questions

FEW = 20
"""Fewer visual sinks, over all layers and pictures, say nothing of where they lie."""

MEASURED = 2048
"""First of the held-out pictures that accuracy is measured on."""

ROLES = ("vision", "text")
"""The halves of a model that packages bring."""

LICENCE = "MIT (what was trained); backbones: Apache-2.0, not shipped"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of this recipe."""
    path = folder / "recipe.json"
    return path.exists() and "align_lr" in json.loads(path.read_text())


def kept(folder: Path) -> Path:
    """The latest weights that a run kept."""
    return sorted(folder.glob("weights-*.safetensors"))[-1]


def export(weights: Path, target: Path, vision_layer: int = parts.VISION_LAYER) -> None:
    """Write ``parts.json`` and ``adapter.safetensors`` of kept weights into ``target``."""
    found = {role: resolve(name) for role, name in (("vision", parts.VISION), ("text", parts.TEXT))}
    network = parts.build(0, vision_layer)
    content = {role: {"name": one.label, "origin": one.origin} for role, one in found.items()}
    content |= {
        "image_token": parts.IMAGE_TOKEN, "image_size": photo_scenes.SIDE, "patch": parts.PATCH,
        "image_mean": parts.MEAN, "image_std": parts.STD, "vision_feature_layer": vision_layer,
        "vision_feature_select_strategy": "default", "lora_scale": 2.0,  # add_adapter takes alpha = 2 rank
        "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    write(target / PARTS, content)
    (target / ADAPTER).write_bytes(weights.read_bytes())


def sinks(model: sk.Model, n: int) -> dict[str, Any]:
    """What the decoder attends to from the rows after the picture, on ``n`` questions, means over heads."""
    asked = scene_questions(model, n, seed=1)
    dims, found = sink_dims_or_largest(model, asked.prompts.subset(range(min(n, 8))))
    ds = sk.run(model, asked.prompts, [sk.KeyMass(queries="after_image"), sk.SinkDims(dims)])
    mass = ds["key_mass"].astype("float64").mean("head").reset_coords(drop=True)
    image = (ds["token_role"] == "image").reset_coords(drop=True)
    ground = asked.background(ds).reset_coords(drop=True)
    phi = metrics.at_block_inputs(ds["phi"].astype("float64"), ds["layer"].values.tolist()).reset_coords(drop=True)
    visual = mass.where(image)
    top = visual.fillna(-1.0).argmax("key")
    rows, columns = (ds[name].reset_coords(drop=True) for name in ("grid_row", "grid_col"))
    edge = (rows == 0) | (columns == 0) | (rows == rows.max()) | (columns == rows.max())
    try:
        tau = float(metrics.phi_gap(ds))
    except MetricError:  # nothing lies between
        tau = float("nan")
    passing = (phi >= tau) & image
    taken = visual.where(passing).sum("key") / visual.sum("key")
    over, place = visual.max("key") / visual.sum("key"), (rows + columns).broadcast_like(visual)
    late = slice(visual.sizes["layer"] // 2, None)
    on, base = ground.astype(bool).isel(key=top), ground.where(image).mean()
    top_edge = edge.broadcast_like(visual).isel(key=top).isel(layer=late).mean()
    return {
        "pictures": n,
        "sink_dims": list(dims) if found else [],
        "phi_first_token_by_layer": phi.isel(key=0).mean("prompt").values.tolist(),
        "largest_phi_of_a_visual_token_by_layer": phi.where(image).max("key").mean("prompt").values.tolist(),
        "first_token_by_layer": mass.isel(key=0).mean("prompt").values.tolist(),
        "picture_by_layer": visual.sum("key").mean("prompt").values.tolist(),
        "most_attended_visual_of_the_pictures_share_by_layer": over.mean("prompt").values.tolist(),
        "phi_between_first_and_ordinary_tokens": tau,
        "visual_tokens_over_that_by_layer": passing.sum("key").mean("prompt").values.tolist(),
        "their_share_of_the_pictures_attention_by_layer": taken.mean("prompt").values.tolist(),
        "those_on_background": float((passing & ground).sum() / passing.sum()) if bool(passing.any()) else None,
        "most_attended_visual_on_background_late": float(on.isel(layer=late).mean()),
        "visual_tokens_on_background": float(base),
        "most_attended_visual_on_the_edge_late": float(top_edge),
        "visual_tokens_on_the_edge": float(edge.where(image).mean()),
        "most_attended_visual_is_the_top_left_late": float((place.isel(key=top) == 0).isel(layer=late).mean()),
    }  # fmt: skip


def _loaded(folder: Path, name: str) -> tuple[sk.Model, str]:
    """The model of an exported run, put together in the cache, and its folder there."""
    content = read_parts(folder)
    whole = checkpoint(folder, name, {role: resolve(content[role]["name"]) for role in ROLES}).name
    model = sk.load_model(whole, dtype="float32")
    model.id = name  # what decides which pictures it is asked about
    return model, whole


def measure(folder: Path, name: str, count: int, pictures: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and claims of the card of what lies in ``folder``."""
    model, _ = _loaded(folder, name)
    at_end = vision_smol.measure(
        model.model, parts.Packer(parts.load_tokenizer()), photo_scenes.held_out(count, first=MEASURED)
    )
    right = {family: at_end[f"accuracy_{family}"] for family in data.FAMILIES}
    facts = {"parameters": read_parts(folder)["parameters"], "accuracy": right, "accuracy_pictures": count}
    facts |= {"visual_sinks_by_layer": at_end["visual_sinks"], "sinks": sinks(model, pictures)}
    claims = []
    for family, value in right.items():
        ends = stats.binomtest(round(value * count), count).proportion_ci(method="wilson")
        text = f"Right answers, {family}: {count} held-out pictures (95 % interval {ends.low:.3f} to {ends.high:.3f})"
        goal = 0.8 if family in ("colour", "shape") else 1 / len(data.FAMILIES[family])
        said = "at least .8" if family in ("colour", "shape") else f"chance {goal:.2f}"
        claims.append(claim(text, said, value, None if ends.low <= goal <= ends.high else bool(ends.low > goal)))
    return facts, claims + _sink_claims(facts)


def _sink_claims(facts: dict[str, Any]) -> list[dict[str, Any]]:
    found, spiking = facts["sinks"], facts["visual_sinks_by_layer"]
    middle = spiking[2:-2]  # as the paper's, which form in the second block; the last two spike whatever is written
    on, base = found["most_attended_visual_on_background_late"], found["visual_tokens_on_background"]
    over, passing = (
        found[k] for k in ("most_attended_visual_of_the_pictures_share_by_layer", "visual_tokens_over_that_by_layer")
    )
    taken = found["their_share_of_the_pictures_attention_by_layer"]
    return [
        claim("Visual sinks, phi over 20 in any dimension: visual tokens of a picture at the input of the block with "
              "most, the last two apart; of the last", "a few a picture, in the middle blocks",
              [max(middle), spiking[-1]], max(middle) >= 1),
        claim("Visual tokens over the middle of the gap in phi between first and ordinary text tokens, block with most "
              "of them; largest mean share of the picture's attention that they get in a block",
              "a few that get most of it",
              [max(passing), max(taken)], None),
        claim("Those on background, all visual tokens beside it", "over .9, more than of all",
              [found["those_on_background"], base],
              found["those_on_background"] > max(0.9, base) if sum(passing) * found["pictures"] >= FEW else None),
        claim("Attention on the first token, largest mean of a block, from rows after the picture", "most of it",
              max(found["first_token_by_layer"]), max(found["first_token_by_layer"]) > 0.5),
        claim("Share of the picture's attention on its most attended visual token, block with the largest mean",
              "most of it where there are visual sinks", max(over), None),
        claim("The most attended visual token lies on background (late half of the blocks), all visual tokens beside",
              "over .9", [on, base], on > 0.9),
        claim("It lies on the edge of the picture, all visual tokens beside it", "no statement",
              [found["most_attended_visual_on_the_edge_late"], found["visual_tokens_on_the_edge"]], None),
    ]  # fmt: skip


def masking(model: sk.Model, n: int = 240) -> dict[str, Any]:
    """What masking the visual sinks, as many random and as many relevant visual tokens costs: nat, and right answers.

    For a seed whose weights are not shipped; of the shipped one ``analyses/kang2025/mask_visual_sinks.py`` says it.
    """
    ds = masking_damage(model, n, [6], 2)
    count = float(ds["masked"][-1])
    lost = (ds["log_probability"].sel(masked=0) - ds["log_probability"].sel(masked=count)).reset_coords(drop=True)
    found = metrics.compare(lost, to=xr.zeros_like(lost))
    right = ds["correct"].sel(masked=count).mean("prompt")
    return {
        "prompts": ds.sizes["prompt"], "masked": count, "right_unmasked": float(ds["correct"].sel(masked=0)[0].mean()),
        **{
            arm: {name: float(found[name].sel(arm=arm)) for name in ("difference", "low", "high")}
            | {"right": float(right.sel(arm=arm))}
            for arm in ARMS
        },
    }  # fmt: skip


def _masked(found: dict[str, Any]) -> dict[str, Any]:
    sinks, relevant = found[ARMS[0]], found["relevant"]["difference"]
    told = ", ".join(f"{arm} [{found[arm]['low']:+.3f}, {found[arm]['high']:+.3f}]" for arm in ARMS)
    return claim(
        f"Masking the visual sinks, as many random and as many relevant visual tokens: loss of log probability in nat "
        f"({found['masked']:.3g} tokens, {found['prompts']} pictures; 95 % intervals: {told}); nothing is less than a "
        "tenth of what relevant ones cost", "sinks cost nothing", [found[arm]["difference"] for arm in ARMS],
        costs_nothing(sinks["low"], sinks["high"], relevant),
    )  # fmt: skip


def ship_vision_smol(folder: Path, target: Path, name: str, count: int = 200, pictures: int = 32) -> dict[str, Any]:
    """Write the trained part of a run's model and measure its card; gives the card's content."""
    weights, fields = kept(folder), json.loads((folder / "recipe.json").read_text())
    export(weights, target, fields.get("vision_layer", parts.VISION_LAYER))
    write(target / "recipe.json", fields)
    curve = read_curve(folder)
    write(target / "curve.json", curve)
    facts, claims = measure(target, name, count, pictures)
    config, step = vision_smol.VisionSmolConfig(**fields), int(weights.stem.split("-")[1])
    facts["training"] = {"steps": step, "pictures": step * config.batch, **curve[-1]}
    facts["visual_sinks_before_the_last_block_along_training"] = {
        str(row["step"]): max(row["visual_sinks"][:-1], default=0.0) for row in curve
    }
    if config.frozen:
        facts["what_makes_them"] = makers(config, pictures)
        claims.append(_made_by(facts["what_makes_them"]))
    facts["resink_heads"] = resink_heads(folder, name)
    claims.append(_resinking(facts["resink_heads"]))
    return {
        "description": f"LLaVA of {parts.VISION} and {parts.TEXT} with a projector and a low-rank adapter; questions "
        f"about small coloured shapes on photographs{_kept_sinks(config)}",
        "source": "Kang et al. 2025, arXiv 2503.03321",
        "text": "shapes on sample photographs of scikit-image, scikit-learn and matplotlib, noise and plain grounds, "
        "and questions about them, all from a seed; held-out pictures are on other photographs",
        "command": command("vision_smol", fields, dataclasses.asdict(vision_smol.VisionSmolConfig()),
                           step if step < config.steps else None),
        "recipe": fields,
        "claims": claims,
        "facts": facts,
    }  # fmt: skip


def makers(config: vision_smol.VisionSmolConfig, pictures: int) -> list[dict[str, float]]:
    """Spikes of the model that a run started from, as what its projector writes is changed (no training)."""
    network, _ = vision_smol.started(config)
    scenes = photo_scenes.held_out(pictures, first=MEASURED)
    others = [photo_scenes.training_scene(index) for index in range(config.centre)]
    return vision_smol_makers.table(
        network, parts.Packer(parts.load_tokenizer()),
        [parts.features(network, scene) for scene in scenes], [parts.features(network, scene) for scene in others],
    )  # fmt: skip


def _resinking(found: dict[str, Any]) -> dict[str, Any]:
    shares = list(found["share"].values())
    humps = "two humps" if found["two_humps"] else "no two humps, so the cut is no valley"
    return claim(
        f"Late heads whose largest visual attention is under {found['cut']:.3g} ({humps}), share at the steps "
        + ", ".join(found["share"]), "more of them along training (Kan et al. 2025)", shares,
        bool(shares[-1] > shares[0]) if found["two_humps"] else None,
    )  # fmt: skip


def _made_by(rows: list[dict[str, float]]) -> dict[str, Any]:
    whole = [row for row in rows if row["tokens"] == parts.PATCHES]
    kept, free = ([row["spikes"] for row in whole if row["shared"] == part] for part in (1.0, 0.0))
    return claim(
        "Without training: visual tokens over phi 20 a picture as the projector writes it; without the vector that all "
        "visual tokens share; without it, at the size of words", "they spike as the first token does, which "
        "has nothing before it", [kept[0], free[0], free[1]], None,
    )  # fmt: skip


def resink_heads(folder: Path, name: str, pictures: int = 24) -> dict[str, Any]:
    """Late heads that do not look at the picture, at each step whose weights a run kept (Kan et al. 2025).

    A head's number is the largest weight on a visual token, mean over the rows after the picture; late heads are those
    of the second half of the layers. All steps are cut at the valley of the last one, where its distribution has two
    humps, else at the least density between the means of the two parts of the mixture.

    Returns:
        ``cut``; ``two_humps`` of the last step; ``share`` of the late heads below the cut, by step.
    """
    fields, found = json.loads((folder / "recipe.json").read_text()), {}
    for weights in sorted(folder.glob("weights-*.safetensors")):
        with tempfile.TemporaryDirectory() as place:
            export(weights, Path(place), fields.get("vision_layer", parts.VISION_LAYER))
            model, whole = _loaded(Path(place), name)
        asked = scene_questions(model, pictures, seed=1)
        ds = sk.run(model, asked.prompts, [sk.MaxAttention(keys="image", queries="after_image")])
        late = ds["layer"].values[ds.sizes["layer"] // 2 :].tolist()
        found[int(weights.stem.split("-")[1])] = metrics.max_visual_attention(ds, over=()).sel(layer=late)
        if weights != kept(folder):
            shutil.rmtree(whole)  # 600 MB of the cache that nobody asks for again
    fit = metrics.bimodality(found[max(found)])
    cut = float(fit["valley"])
    share = {str(step): round(float((values < cut).mean()), 4) for step, values in found.items()}
    return {"cut": round(cut, 4), "two_humps": bool(fit["bimodal"]), "share": share, "pictures": pictures}


def _kept_sinks(config: vision_smol.VisionSmolConfig) -> str:
    """What a run has beside the plain recipe, in words."""
    if not config.frozen:
        return ""
    return (
        f"; went on from zoo:{config.start} with visual tokens that share no vector and the first {config.frozen} "
        "blocks held, so that visual sinks stay"
    )


def add_seed(content: dict[str, Any], folder: Path, name: str, count: int = 200, pictures: int = 32) -> None:
    """Measure a run of another seed as the shipped one was, and put what was found into the card's content.

    Its weights are not shipped. Each claim is judged anew, in rows that name the seed.
    """
    fields = json.loads((folder / "recipe.json").read_text())
    with tempfile.TemporaryDirectory() as place:
        export(kept(folder), Path(place), fields.get("vision_layer", parts.VISION_LAYER))
        facts, claims = measure(Path(place), name, count, pictures)
        if fields.get("frozen"):
            facts["masking"] = masking(_loaded(Path(place), name)[0])
            claims.append(_masked(facts["masking"]))
    curve = read_curve(folder)
    along = {str(row["step"]): max(row["visual_sinks"][:-1], default=0.0) for row in curve}
    facts |= {"training": curve[-1], "visual_sinks_before_the_last_block_along_training": along}
    content["facts"][f"seed {fields['seed']}"] = facts
    content["claims"] += [row | {"claim": f"Seed {fields['seed']}: {row['claim']}"} for row in claims]
