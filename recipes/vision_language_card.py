"""Put the vision-language model into the zoo: its files, and a card of what it can and which sinks it has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats

import sinkscope as sk
from recipes import vision_language_model as parts
from recipes.facts import claim
from recipes.language_model import build_optimizer, load_checkpoint
from recipes.run_files import command, read_curve, write
from recipes.vision_language import Learner, VisionLanguageConfig, accuracy
from sinkscope import metrics, zoo
from sinkscope.analysis import highest_tokens, spread_layers
from sinkscope.methods.var import VarSettings, sink_dims_or_largest, tau_of
from sinkscope.models import variants
from sinkscope.tasks import scenes as data
from sinkscope.tasks.scene_questions import received, scene_questions

MEASURED = 2048
"""First of the held-out scenes that accuracy is measured on."""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of this recipe."""
    path = folder / "config.json"
    return path.exists() and "tower_steps" in json.loads(path.read_text())


def read_config(folder: Path) -> VisionLanguageConfig:
    """Fields of a run, from its ``config.json``."""
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    fields["betas"] = tuple(fields["betas"])
    return VisionLanguageConfig(**fields)


def export(folder: Path, target: Path) -> int:
    """Write the model of a run's checkpoint with tokenizer and processor into ``target``; gives the step."""
    config = read_config(folder)
    tokenizer = parts.make_tokenizer(config.vocab)
    learner = Learner(config, tokenizer)
    step = load_checkpoint(folder, learner, build_optimizer(learner, config))  # type: ignore[arg-type]
    target.mkdir(parents=True, exist_ok=True)
    variants.save(learner.vlm, target, torch.bfloat16)
    parts.make_processor(tokenizer, config.patch).save_pretrained(target)
    return step


@torch.no_grad()
def descriptions(model: sk.Model, scenes: list[data.Scene]) -> float:
    """Share of pictures whose greedy description names every shape with its colour and place, and nothing else."""
    processor, right = model.processor, []
    assert processor is not None
    for scene in scenes:
        request, expected = data.describe(scene)
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request}]}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        given = processor(images=[scene.image()], text=text, return_tensors="pt", add_special_tokens=False)
        found = model.model.generate(**given, max_new_tokens=32, do_sample=False)  # type: ignore[operator]
        said = processor.tokenizer.decode(found[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        right.append(said.strip() == expected)
    return float(np.mean(right))


def sinks(model: sk.Model, n: int = 96) -> dict[str, Any]:
    """What sinks the model has, on ``n`` questions: first token, sink dimensions, visual tokens, classes of heads."""
    shapes = scene_questions(model, n, seed=1)
    dims, found = sink_dims_or_largest(model, shapes.prompts)
    layers = spread_layers(model, 64)
    probes = [
        sk.AttentionMap(layers=layers, heads=range(int(model.config.get_text_config().num_attention_heads))),
        sk.SinkDims(dims), sk.MassiveActivations(top=3), sk.MaxAttention(keys="image", queries="after_image"),
    ]  # fmt: skip
    ds = sk.run(model, shapes.prompts, probes)
    weights = received(ds).reset_coords(drop=True)
    image = (ds["token_role"] == "image").reset_coords(drop=True)
    ground = shapes.background(ds).reset_coords(drop=True)
    visual, tau = weights.where(image), tau_of(model, VarSettings())
    phi = metrics.at_block_inputs(ds["phi"].astype("float64"), layers).reset_coords(drop=True)
    passing = (phi >= tau) & image
    pooled = visual.mean(["layer", "head"])
    top = highest_tokens(pooled, image, 1)
    late = metrics.max_visual_attention(ds, over=()).sel(layer=layers[len(layers) // 2 :])
    fit = metrics.bimodality(late)
    first = weights.isel(key=0).mean("prompt")
    middle = ds["top_value"].sel(site=[f"{layer}.post" for layer in layers[:-1]])
    median = ds["median_abs"].sel(site=middle["site"])
    return {
        "first_token": first.values.tolist(),
        "heads_over_.3_on_first_token": float((first > 0.3).mean()),
        "sink_dims": list(dims) if found else [],
        "phi_first_token": float(phi.isel(key=0).max("layer").mean()),
        "phi_visual_over_first": float(phi.where(image).max() / phi.isel(key=0).max("layer").mean()),
        "tau": tau,
        "visual_tokens_passing_tau": float(passing.sum() / (image.sum() * len(layers))),
        "passing_on_background": _share(passing & ground, passing),
        "visual_share": float(visual.sum("key").mean()),
        "largest_on_one_visual_token": float(visual.max("key").mean("prompt").max()),
        "most_attended_over_median": float((pooled.max("key") / pooled.median("key")).mean()),
        "most_attended_on_background": _share(top & ground, top),
        "visual_tokens_on_background": _share(image & ground, image),
        "massive_by_layer": (abs(middle).isel(rank=0) / median).mean("prompt").values.tolist(),
        "late_heads_dip_p": float(fit["dip_p"]),
        "late_heads_bimodal": bool(fit["bimodal"]),
    }  # fmt: skip


def _share(part: xr.DataArray, whole: xr.DataArray) -> float:
    return float(part.sum() / whole.sum()) if bool(whole.any()) else float("nan")


def measure(folder: Path, count: int = 400, described: int = 48) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and claims of the card of the model in ``folder``."""
    model = sk.load_model(folder, dtype="float32")
    scenes = data.held_out(count, first=MEASURED)
    right = accuracy(model.model, model.tokenizer, scenes)
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in model.model.parameters())}
    facts |= {"accuracy": right, "accuracy_scenes": count, "sinks": sinks(model)}
    facts["descriptions_exactly_right"] = descriptions(model, scenes[:described])
    by_ground: dict[str, list[data.Scene]] = {}
    for scene in scenes:
        by_ground.setdefault(scene.background, []).append(scene)
    facts["accuracy_by_background"] = {
        name: float(np.mean(list(accuracy(model.model, model.tokenizer, some).values())))
        for name, some in sorted(by_ground.items())
    }
    claims = []
    for family, value in right.items():
        chance = 1 / len(data.FAMILIES[family])
        ends = stats.binomtest(round(value * count), count).proportion_ci(method="wilson")
        text = f"Right answers, {family}: {count} held-out pictures (95 % interval {ends.low:.3f} to {ends.high:.3f})"
        claims.append(claim(text, f"chance {chance:.2f}", value, bool(ends.low > chance)))
    return facts, claims + _sink_claims(facts["sinks"])


def _sink_claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    over, passing = found["heads_over_.3_on_first_token"], found["visual_tokens_passing_tau"]
    top, base = found["most_attended_on_background"], found["visual_tokens_on_background"]
    on, spike = found["passing_on_background"], found["phi_visual_over_first"]
    return [
        claim("Share of heads that give the first token over .3, from rows after the picture", "most (text sink)", over,
              over > 0.5),
        claim("Dimensions that spike at the first token, by the rule of Kang et al. relative to the width",
              "one or two, the same for visual sinks", found["sink_dims"], bool(found["sink_dims"])),
        claim(f"Visual sinks: share of (token, layer) pairs with phi of at least {found['tau']:.2f}; the highest "
              "phi of a visual token over that of the first token", "a few a picture, as high as the first token",
              [passing, spike], 0 < passing < 0.2 and spike > 0.8),
        claim("Share of those on background, all visual tokens beside it", "over .9, more than of all", [on, base],
              on > max(0.9, base) if passing else None),
        claim("The most attended visual token lies on background (share of pictures), all visual tokens beside it",
              "over .9: visual sinks are background", [top, base], top > 0.9),
        claim("Maximum visual attention of late heads has two humps (dip test p)", "two humps (Kan et al.)",
              found["late_heads_dip_p"], found["late_heads_bimodal"]),
    ]  # fmt: skip


def ship_vision_language(folder: Path, target: Path) -> dict[str, Any]:
    """Write the files of a run's model and measure its card; gives the card's content."""
    config, step = read_config(folder), export(folder, target)
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    write(target / "recipe.json", fields)
    curve = read_curve(folder)
    write(target / "curve.json", curve)
    facts, claims = measure(target)
    facts["training"] = {"steps": step, "pictures": (step - config.tower_steps) * config.batch, **curve[-1]}
    manifest = {entry.name: entry.files for entry in zoo.entries()}
    if config.start:
        facts["decoder_started_from"] = {config.start: manifest[config.start]["model.safetensors"]}
    stopped = step if step < config.tower_steps + config.steps else None
    return {
        "description": f"LLaVA: CLIP tower of {config.tower_layers} layers, Llama of {config.layers} layers and "
        f"{config.heads} heads, width {config.width}; questions about coloured shapes",
        "source": "Kang et al. 2025, arXiv 2503.03321",
        "text": "procedural pictures of 64 by 64 pixels and questions about them, all from a seed; the decoder started "
        f"from zoo:{config.start}" if config.start else "procedural pictures and questions, all from a seed",
        "command": command("vision_language", fields, dataclasses.asdict(VisionLanguageConfig()), stopped),
        "recipe": fields,
        "claims": claims,
        "facts": facts,
    }  # fmt: skip
