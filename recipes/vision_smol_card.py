"""Put the vision-language model of pretrained parts into the zoo: what was trained of it, and a card."""

from __future__ import annotations

import json
from pathlib import Path

from recipes import vision_smol_model as parts
from recipes.run_files import write
from sinkscope.models.sources import resolve
from sinkscope.models.sources.assembled import ADAPTER, PARTS
from sinkscope.tasks import photo_scenes


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of this recipe."""
    path = folder / "recipe.json"
    return path.exists() and "align_lr" in json.loads(path.read_text())


def kept(folder: Path) -> Path:
    """The latest weights that a run kept."""
    return sorted(folder.glob("weights-*.safetensors"))[-1]


def export(weights: Path, target: Path) -> None:
    """Write ``parts.json`` and ``adapter.safetensors`` of kept weights into ``target``."""
    found = {role: resolve(name) for role, name in (("vision", parts.VISION), ("text", parts.TEXT))}
    network = parts.build(0)
    content = {role: {"name": one.label, "origin": one.origin} for role, one in found.items()}
    content |= {
        "image_token": parts.IMAGE_TOKEN, "image_size": photo_scenes.SIDE, "patch": parts.PATCH,
        "image_mean": parts.MEAN, "image_std": parts.STD, "vision_feature_layer": parts.VISION_LAYER,
        "vision_feature_select_strategy": "default", "lora_scale": 2.0,  # add_adapter takes alpha = 2 rank
        "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    write(target / PARTS, content)
    (target / ADAPTER).write_bytes(weights.read_bytes())
