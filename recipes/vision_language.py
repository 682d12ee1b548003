"""Train the small vision-language model of the zoo: ``python -m recipes.vision_language --out FOLDER``.

LLaVA architecture: a CLIP tower, a two-layer projector, and a Llama decoder that starts from ``zoo:lm-python`` with an
embedding table of its own. The tower is trained first, to name the colour and the shape that each patch shows; then
the projector and the embeddings alone; then everything, on questions about pictures of coloured shapes. Questions
about one picture share it in one sequence and do not see each other. Takes 20 minutes of one core; a killed run goes on
from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recipes import vision_language_model as parts
from recipes.language_model import build_optimizer, learning_rate, load_checkpoint, save_checkpoint
from sinkscope.tasks import scenes as data


@dataclasses.dataclass(frozen=True)
class VisionLanguageConfig:
    """What decides the weights: model, data and optimiser.

    ``tower_steps`` steps train the tower alone (``tower_batch`` pictures, peak learning rate ``tower_lr``), then
    ``steps`` steps the whole model, of which the first ``align_steps`` leave the tower and the decoder's blocks as they
    are. ``start`` is the zoo model whose decoder is taken over; empty: random weights. The learning rate is held at
    ``lr`` after ``warmup`` steps and falls linearly to a twentieth over the last ``decay`` share of ``steps``.
    """

    tower_layers: int = 3
    tower_width: int = 64
    tower_heads: int = 4
    tower_mlp: int = 192
    patch: int = 8
    start: str = "lm-python"
    layers: int = 6
    heads: int = 4
    width: int = 128
    mlp: int = 344
    vocab: int = 480
    tower_steps: int = 1500
    tower_batch: int = 32
    tower_lr: float = 2e-3
    align_steps: int = 150
    steps: int = 2500
    batch: int = 12
    lr: float = 1.5e-3
    warmup: int = 50
    decay: float = 0.28
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    init_std: float = 0.06
    seed: int = 0
    threads: int = 1


FAMILIES = ("colour", "colour", "shape", "shape", "place", "number", "presence")
"""Questions asked about each picture of a training step; a description comes last."""


class Learner(nn.Module):
    """The model and the layer that reads colour and shape off the tower while it is trained alone."""

    def __init__(self, config: VisionLanguageConfig, tokenizer: Any) -> None:
        super().__init__()
        self.vlm = parts.build(config, tokenizer)
        self.readout = nn.Linear(config.tower_width, len(data.COLOURS) + len(data.SHAPES) + 2)


def scenes_of_step(config: VisionLanguageConfig, step: int, count: int) -> tuple[list[data.Scene], np.random.Generator]:
    """Scenes of a training step, and the generator that draws their questions."""
    rng = np.random.default_rng([config.seed, step])
    return [data.make_scene(rng) for _ in range(count)], rng


def tower_loss(learner: Learner, scenes: list[data.Scene]) -> torch.Tensor:
    """Cross-entropy of the colour and of the shape that each patch shows, background being one class of each."""
    hidden = learner.vlm.model.vision_tower(parts.pixel_values(scenes)).last_hidden_state[:, 1:]
    logits = learner.readout(hidden).flatten(0, 1)
    owner = [scene.patch_owner().ravel() for scene in scenes]
    split = len(data.COLOURS) + 1
    loss = torch.zeros(())
    for chosen, what, values in (
        (logits[:, :split], "colour", tuple(data.COLOURS)),
        (logits[:, split:], "shape", data.SHAPES),
    ):
        target = [
            values.index(getattr(scene.things[i], what)) if i >= 0 else len(values)
            for scene, row in zip(scenes, owner, strict=True)
            for i in row
        ]
        loss = loss + nn.functional.cross_entropy(chosen, torch.tensor(target))
    return loss


def question_loss(learner: Learner, tokenizer: Any, scenes: list[data.Scene], rng: np.random.Generator) -> torch.Tensor:
    """Mean cross-entropy of the tokens of all answers and descriptions."""
    dialogues = []
    for scene in scenes:
        asked = [data.ask(scene, family, rng) for family in FAMILIES]
        dialogues.append([(q.text, q.answer) for q in asked] + [data.describe(scene)])
    packed = parts.pack(tokenizer, dialogues, learner.vlm.config.image_seq_length)
    hidden = parts.packed_states(learner.vlm, packed, parts.pixel_values(scenes))
    where = packed.target >= 0
    return nn.functional.cross_entropy(learner.vlm.lm_head(hidden[where]), packed.target[where])


@torch.no_grad()
def accuracy(vlm: Any, tokenizer: Any, scenes: list[data.Scene], seed: int = 0) -> dict[str, float]:
    """Share of right answers by family, one question of each family about each scene, greedy over the vocabulary."""
    rng = np.random.default_rng([seed, 77])
    asked = [[data.ask(scene, family, rng) for family in data.FAMILIES] for scene in scenes]
    right = []
    for start in range(0, len(scenes), 16):
        some = slice(start, start + 16)
        packed = parts.pack(
            tokenizer, [[(q.text, q.answer) for q in row] for row in asked[some]], vlm.config.image_seq_length
        )
        hidden = parts.packed_states(vlm, packed, parts.pixel_values(scenes[some]))
        where = packed.target >= 0
        found = vlm.lm_head(hidden[where]).argmax(-1) == packed.target[where]
        right.append(found.reshape(-1, len(data.FAMILIES), 2)[..., 0])  # the answer; </s> follows it
    share = torch.cat(right).float().mean(0)
    return {family: float(value) for family, value in zip(data.FAMILIES, share, strict=True)}


def _one_step(
    learner: Learner, optimizer: torch.optim.Optimizer, tokenizer: Any, config: VisionLanguageConfig, step: int
) -> float:
    vlm, later = learner.vlm, step - config.tower_steps
    if later < 0:
        schedule = dataclasses.replace(config, steps=config.tower_steps, lr=config.tower_lr)
        scenes, _ = scenes_of_step(config, step, config.tower_batch)
        loss, rate = tower_loss(learner, scenes), learning_rate(schedule, step)  # type: ignore[arg-type]
    else:
        aligning = later < config.align_steps
        for module in (vlm.model.vision_tower, vlm.model.language_model.layers):
            module.requires_grad_(not aligning)
        scenes, rng = scenes_of_step(config, step, config.batch)
        loss, rate = question_loss(learner, tokenizer, scenes, rng), learning_rate(config, later)  # type: ignore[arg-type]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def train(
    config: VisionLanguageConfig,
    folder: Path,
    measure_every: int = 200,
    say: Callable[[str], None] = lambda line: None,
    stop_at: int | None = None,
) -> Learner:
    """Train, measuring accuracy and sinks on held-out pictures every ``measure_every`` steps into ``curve.jsonl``.

    Args:
        config: What decides the weights.
        folder: Where tokenizer, checkpoint and curve go; a run found there goes on.
        measure_every: Steps between measurements and checkpoints.
        say: Receives one line of progress per measurement.
        stop_at: Stop at this step (those of the tower count), as a killed run would, to go on later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    tokenizer = parts.make_tokenizer(config.vocab)
    learner = Learner(config, tokenizer)
    optimizer = build_optimizer(learner, config)  # type: ignore[arg-type]
    step = load_checkpoint(folder, learner, optimizer)
    curve, probe, running = folder / "curve.jsonl", data.held_out(64), 0.0
    before = json.loads(curve.read_text().splitlines()[-1])["cpu_seconds"] if curve.exists() else 0.0
    started, total = time.process_time() - before, config.tower_steps + config.steps
    last = total if stop_at is None else min(stop_at, total)
    while step < last:
        loss = _one_step(learner, optimizer, tokenizer, config, step)
        running = loss if running == 0.0 or step == config.tower_steps else 0.98 * running + 0.02 * loss
        step += 1
        if step % measure_every == 0 or step == last or step == config.tower_steps:
            row: dict[str, Any] = {"step": step, "stage": "tower" if step <= config.tower_steps else "questions"}
            row |= {"train_loss": running, "cpu_seconds": time.process_time() - started}
            if step > config.tower_steps:
                row |= {f"accuracy_{k}": v for k, v in accuracy(learner.vlm, tokenizer, probe).items()}
                row |= parts.sink_summary(learner.vlm, tokenizer, probe[:24])
            with curve.open("a") as file:
                file.write(json.dumps(row) + "\n")
            save_checkpoint(folder, learner, optimizer, step)
            say(" ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    return learner


def main() -> None:
    """Command line: every field of :class:`VisionLanguageConfig` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the curve")
    parser.add_argument("--measure-every", type=int, default=200)
    parser.add_argument("--stop-at", type=int, default=None, help="stop at this step, to go on later")
    for field in dataclasses.fields(VisionLanguageConfig):
        if field.name != "betas":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, metavar="X"
            )
    options = vars(parser.parse_args())
    out, every, stop = (options.pop(name) for name in ("out", "measure_every", "stop_at"))
    config = VisionLanguageConfig(**options)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2))
    train(config, out, measure_every=every, stop_at=stop, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
