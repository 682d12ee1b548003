"""Put the vision-language model on the shelf: its files, and a card of what it can and which sinks it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sinkscope.zoo import variants
from sinkscope.zoo.recipes import vision_language_model as parts
from sinkscope.zoo.recipes.language_model import build_optimizer, load_checkpoint
from sinkscope.zoo.recipes.vision_language import Config, Learner


def read_config(folder: Path) -> Config:
    """Fields of a run, from its ``config.json``."""
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    fields["betas"] = tuple(fields["betas"])
    return Config(**fields)


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
