"""Put a finished run into the zoo: copy its files, measure its card, renew checksums and pages.

    python -m recipes.ship NAME RUN_FOLDER [MORE_SEEDS ...]
    python -m recipes.ship --curve NAME RUN_FOLDER [MORE_SEEDS ...]      curves alone, for a variant
    python -m recipes.ship --seeds NAME RUN_FOLDER [MORE_SEEDS ...]      further seeds of a shipped vlm-smol model
    python -m recipes.ship --pages docs/zoo

The first folder's model is shipped; of further folders, other seeds of the same recipe, the curves, and of
``vlm-smol`` what its card measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from recipes import emergence, facts, seeds, vision_language_card, vision_smol_card
from recipes.language_model import (
    LanguageModelConfig,
    build_model,
    build_optimizer,
    command,
    load_checkpoint,
    tokens_seen,
)
from recipes.run_files import read_curve, write
from sinkscope import zoo
from sinkscope.errors import ModelError
from sinkscope.models import variants
from sinkscope.tasks.backcopy import SYMBOLS, zipf_chain

FIGURES = (
    "backcopy-dynamics", "backcopy-residual-peak", "vision-language-training", "vision-language-sinks",
)  # fmt: skip
"""Names of the figures that :mod:`recipes.figures` draws beside the pages."""

BACKCOPY_TEXT = "none: sequences from a Zipf-like bigram chain made from a seed (the paper uses tiny-Shakespeare)"
STDLIB_TEXT = (
    "source code of the CPython standard library of the training machine, Python Software Foundation License; the "
    "text itself is not shipped, 1 file in 20 was held out"
)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def ship_backcopy(name: str, folders: list[Path], target: Path) -> dict[str, Any]:
    """Copy a Bigram-Backcopy run and measure its card; the curves of all folders go into it."""
    recipe = json.loads((folders[0] / "recipe.json").read_text())
    model = variants.load(folders[0])
    chain = zipf_chain(len(SYMBOLS), recipe["triggers"])
    curves = {json.loads((f / "recipe.json").read_text())["seed"]: read_curve(f) for f in folders}
    measured, claims = facts.backcopy_facts(model, curves, recipe["seed"], chain, recipe)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.json"):
        (target / file).write_bytes((folders[0] / file).read_bytes())
    write(target / "curve.json", curves[recipe["seed"]])
    attention = {"softmax": "softmax", "relu": "ReLU"}.get(recipe["normaliser"], recipe["normaliser"])
    layers = f"{recipe['layers']} layer" + ("s" if recipe["layers"] > 1 else "")
    return {
        "description": f"Bigram-Backcopy, {layers}, {attention} attention, {recipe['optimizer']}, "
        f"{recipe['triggers']} triggers",
        "source": "Guo et al. 2024, arXiv 2410.13835",
        "text": BACKCOPY_TEXT,
        "command": f"python -m recipes.bigram_backcopy --arm {name} --seed {recipe['seed']} --out FOLDER",
        "recipe": recipe,
        "claims": claims,
        "facts": measured,
    }


def ship_language_model(name: str, folder: Path, target: Path) -> dict[str, Any]:
    """Copy a language model's checkpoint in bfloat16 and measure its card on the weights as shipped."""
    fields = json.loads((folder / "config.json").read_text())
    fields["betas"] = tuple(fields["betas"])
    config = LanguageModelConfig(**{k: v for k, v in fields.items() if hasattr(LanguageModelConfig(), k)})
    fields = dataclasses.asdict(config)
    model = build_model(config)
    step = load_checkpoint(folder, model, build_optimizer(model, config))
    variants.save(model, target, torch.bfloat16)
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "pad_token": "<pad>"}
    write(target / "tokenizer_config.json", names)
    write(target / "recipe.json", fields)
    curve = read_curve(folder)
    write(target / "curve.json", curve)
    measured, claims = facts.language_model_facts(variants.load(target), np.load(folder / "held_out.npy"), config.bos)
    if changes := changes_of(config):
        claims = []  # the targets are those of the plain model; what a change does stands on the page of variants
    measured["training"] = {"steps": step, "tokens": tokens_seen(config, step), **curve[-1]}
    kind = ", ".join([config.normaliser, *changes])
    return {
        "description": f"Llama, {config.layers} layers, {config.heads} heads, width {config.width}, {kind}; "
        "Python source text",
        "source": "Qiu et al. 2025, arXiv 2505.06708" if config.gate else "Gu et al. 2025, arXiv 2410.10781",
        "text": STDLIB_TEXT + f"; {config.repeat_share:.0%} of the windows say a span again and again",
        "command": command(fields, step),
        "recipe": fields,
        "claims": claims,
        "facts": measured,
    }


def changes_of(config: LanguageModelConfig) -> list[str]:
    """What a run has beside a plain Llama, in words."""
    words = {
        "a learned key and value in each head": config.extra_value,
        "a learned key in each head": config.extra_key and not config.extra_value,
        "a learned vector added to each head": config.value_bias,
        "a gate on each element of a head": config.gate_elements,
        "a gate on each head": config.gate and not config.gate_elements,
        f"{config.positions} positions": config.positions != "rotary",
        f"a prefix of {config.prefix}": config.prefix > 0,
        "a sink token": config.sink_token,
        f"a window of {config.window}": config.window > 0,
        "no <s>": not config.bos,
    }
    return [text for text, holds in words.items() if holds]


def _recipes(folders: list[Path]) -> list[dict[str, Any]]:
    """Recipes of runs that must differ in the seed alone, and in how long they went.

    Raises:
        ModelError: they differ in more.
    """
    files = [f / "recipe.json" if (f / "recipe.json").exists() else f / "config.json" for f in folders]
    recipes = [json.loads(file.read_text()) for file in files]
    for folder, recipe in zip(folders, recipes, strict=True):
        differing = sorted(k for k in recipe if recipe[k] != recipes[0].get(k) and k not in ("seed", "steps"))
        if differing:
            raise ModelError(
                f"ship: {folder} differs from {folders[0]} in {', '.join(differing)}. Ship it under another name."
            )
    return recipes


def ship_curve(name: str, folders: list[Path]) -> Path:
    """Put the curves of runs that differ in the seed alone into the zoo, without weights.

    Raises:
        ModelError: a folder holds no curve, or its recipe differs in more than the seed.
    """
    recipes = _recipes(folders)
    runs = {str(recipe["seed"]): read_curve(folder) for folder, recipe in zip(folders, recipes, strict=True)}
    zoo.CURVES.mkdir(parents=True, exist_ok=True)
    target = zoo.CURVES / f"{name}.json"
    recipe = {k: v for k, v in recipes[0].items() if k != "seed"}
    write(target, {"name": name, "recipe": recipe, "versions": _versions(), "runs": runs})
    return target


def ship(name: str, folders: list[Path]) -> Path:
    """Put a run into the zoo under ``name`` and list it with its checksums.

    Raises:
        ModelError: a folder holds no finished run.
    """
    if not (folders[0] / "recipe.json").exists() and not (folders[0] / "checkpoint.safetensors").exists():
        raise ModelError(f"ship: {folders[0]} holds no recipe.json and no checkpoint. Name the folder of a run.")
    if folders[1:]:
        _recipes(folders)
    target = zoo.WEIGHTS / name
    target.mkdir(parents=True, exist_ok=True)
    if vision_language_card.is_run(folders[0]):
        content = vision_language_card.ship_vision_language(folders[0], target)
    elif vision_smol_card.is_run(folders[0]):
        content = vision_smol_card.ship_vision_smol(folders[0], target, f"zoo:{name}")
        for folder in folders[1:]:
            vision_smol_card.add_seed(content, folder, f"zoo:{name}")
    elif (folders[0] / "checkpoint.safetensors").exists():
        content = ship_language_model(name, folders[0], target)
    else:
        content = ship_backcopy(name, folders, target)
    write(target / "card.json", {"name": name, **content, "versions": _versions()})
    if folders[1:]:
        ship_curve(name, folders[1:])
    _list(name)
    return target


def ship_seeds(name: str, folders: list[Path]) -> Path:
    """Measure further seeds of a vision-language model that is shipped, and put them into its card.

    Raises:
        ModelError: the model is not shipped or of another recipe, or its card has this seed.
    """
    target = zoo.WEIGHTS / name
    if not vision_smol_card.is_run(target):
        raise ModelError(f"ship: zoo:{name} is no model of recipes.vision_smol that is shipped. Ship its run first.")
    content = zoo.card(name)
    for recipe in _recipes([target, *folders])[1:]:
        if f"seed {recipe['seed']}" in content["facts"] or recipe["seed"] == content["recipe"]["seed"]:
            raise ModelError(f"ship: the card of zoo:{name} holds seed {recipe['seed']} already. Name another run.")
    for folder in folders:
        vision_smol_card.add_seed(content, folder, f"zoo:{name}")
    write(target / "card.json", content)
    ship_curve(name, folders)
    _list(name)
    return target


def _list(name: str) -> None:
    """Renew the row of a shipped model in the list of all, with the checksums of its files."""
    target = zoo.WEIGHTS / name
    description = json.loads((target / "card.json").read_text())["description"]
    manifest = zoo.WEIGHTS / "manifest.json"
    rows = json.loads(manifest.read_text()) if manifest.exists() else {}
    files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(target.iterdir())}
    licence = "MIT (weights)" + ("; text: PSF licence, not shipped" if "Python" in description else "")
    if vision_smol_card.is_run(target):
        licence = vision_smol_card.LICENCE
    rows[name] = {"description": description, "licence": licence, "files": files}
    write(manifest, dict(sorted(rows.items())))


def page(name: str) -> str:
    """The model's page in Markdown, from its card alone."""
    card = zoo.card(name)
    lines = [f"# zoo:{name}", "", card["description"] + ".", "", "<!-- made from card.json; do not edit -->", ""]
    lines += [f"- After: {card['source']}", f"- Text: {card['text']}", f"- Made by: `{card['command']}`"]
    took = card["facts"].get("training", {}).get("cpu_seconds")
    lines += [f"- Took: {took / 60:.0f} minutes of one processor core"] if took else []
    lines += [f"- Parameters: {card['facts']['parameters']:,}"]
    lines += [f"- Trained with: {', '.join(f'{k} {v}' for k, v in card['versions'].items())}", ""]
    lines += ["| what | paper or target | measured | agrees |", "|---|---|---|---|"]
    for row in card["claims"]:
        verdict = {True: "yes", False: "**no**", None: "not judged"}[row["agrees"]]
        lines.append(f"| {row['claim']} | {row['paper']} | {_found(row)} | {verdict} |")
    lines += ["", "## Facts", ""]
    lines += [f"- {key}: `{json.dumps(value)}`" for key, value in card["facts"].items()]
    return "\n".join(lines) + "\n"


def _found(row: dict[str, Any]) -> str:
    """What was measured, of several seeds the mean with its interval and each."""
    values = row["measured"]
    if row.get("over") != "seeds" or len(values) == 1:
        return _text(values)
    return f"{seeds.text(values)}; seeds: {_text(values)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value)
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def index() -> str:
    """Overview of the zoo in Markdown: every model, and every claim that its measurement does not bear out."""
    lines = ["# The zoo", "", "<!-- made from the cards; do not edit -->", ""]
    lines += ["Small models trained by this project's own recipes, each with a card of measured facts.", ""]
    lines += ["| model | what it is | parameters | claims borne out | made by |", "|---|---|---|---|---|"]
    cards = [zoo.card(entry.name) for entry in zoo.entries()]
    for card in cards:
        judged = [row["agrees"] for row in card["claims"] if row["agrees"] is not None]
        lines.append(
            f"| [zoo:{card['name']}]({card['name']}.md) | {card['description']} | {card['facts']['parameters']:,} | "
            f"{sum(judged)} of {len(judged)} | `{card['command']}` |"
        )
    lines += ["", "## Not borne out", ""]
    for card in cards:
        for row in card["claims"]:
            if row["agrees"] is False:
                found = _found(row)
                lines.append(f"- zoo:{card['name']}: {row['claim']}. Expected: {row['paper']}; measured: {found}.")
    lines += ["", "## Along training", ""]
    lines += [f"![{stem}]({stem}.png)" for stem in FIGURES]
    if emergence.BASE in zoo.curves():
        lines += ["", "The language model and its variants: [what makes the sink emerge](emergence.md)."]
    return "\n".join(lines) + "\n"


def pages(folder: Path) -> list[Path]:
    """Write one page per model of the zoo."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for entry in zoo.entries():
        out.append(folder / f"{entry.name}.md")
        out[-1].write_text(_as_code(page(entry.name)), encoding="utf-8")
    others = {"README.md": index()} | ({"emergence.md": emergence.page()} if emergence.BASE in zoo.curves() else {})
    for name, text in others.items():
        out.append(folder / name)
        out[-1].write_text(_as_code(text), encoding="utf-8")
    return out


def _as_code(text: str) -> str:
    """Set ``<s>`` as code where it is not: Markdown takes it for the HTML element that strikes text through."""
    return re.sub(r"(?<!`)<s>(?!`)", "`<s>`", text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, help="folder for one page per model of the zoo")
    parser.add_argument("--curve", action="store_true", help="ship the curves of the runs, not their weights")
    parser.add_argument("--seeds", action="store_true", help="add the runs to the card of the shipped model")
    parser.add_argument("name", nargs="?")
    parser.add_argument("folders", nargs="*", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.name and options.curve:
        ship_curve(options.name, options.folders)
    elif options.name and options.seeds:
        ship_seeds(options.name, options.folders)
    elif options.name:
        ship(options.name, options.folders)
    if options.pages:
        pages(options.pages)


if __name__ == "__main__":
    main()
