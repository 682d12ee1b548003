"""Train a vision-language model of pretrained parts: ``python -m recipes.vision_smol --out FOLDER``.

LLaVA's architecture of DINOv2-S and SmolLM2-135M, both frozen: first the two-layer projector alone, then a low-rank
adapter of the decoder with it, on questions and captions about small coloured shapes on photographs. All questions
about a picture share it in one sequence and do not see each other; the loss is that of the answers' tokens. Weights and
states are float32, matrix products of training bfloat16 (the gradient's cosine with float32's is .9996, at 1.9 instead
of 3.4 CPU-seconds a picture) where the processor multiplies these itself; elsewhere they are float32 too, as a step
took seven times as long when they were emulated. Measuring is float32 throughout. The tower's features are computed
once per picture and kept in ``--features``, for all seeds. A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from recipes import run_files
from recipes import vision_smol_model as parts
from recipes.vision_language import FAMILIES
from sinkscope import zoo
from sinkscope.files import replacing
from sinkscope.models.sources.assembled import ADAPTER
from sinkscope.tasks import photo_scenes
from sinkscope.tasks import scenes as data

KEPT = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Shares of the training after which the weights are kept."""


@dataclasses.dataclass(frozen=True)
class VisionSmolConfig:
    """What decides the weights.

    ``pictures`` pictures are gone through ``passes`` times, ``batch`` a step, each time in another order and with other
    questions. The first ``align`` of the steps train the projector alone. Learning rates rise over ``warmup`` steps at
    the start of either stage and fall linearly to a twentieth over the last ``decay`` of all steps. The projector reads
    hidden state ``vision_layer`` of the tower; LLaVA's choice, the last but one, is 11.

    ``start`` names a model of the zoo whose projector and adapter are trained on, instead of fresh ones. Before the
    first step the mean of what the projector writes for ``centre`` training pictures is taken from the bias of its
    output, and its output multiplied by ``scale``: visual tokens that share no vector and are as large as words spike
    as the first token does. ``frozen`` over 0 leaves the projector, and the adapter in so many blocks from the first,
    as they are then: the blocks in which spikes arise, which training otherwise teaches not to make any. The weights
    stay those of an ordinary LLaVA.
    """

    pictures: int = 2700
    passes: int = 1
    batch: int = 2
    align: float = 0.2
    align_lr: float = 1e-3
    lr: float = 4e-4
    warmup: int = 40
    decay: float = 0.4
    rank: int = 16
    vision_layer: int = parts.VISION_LAYER
    start: str = ""
    centre: int = 0
    scale: float = 1.0
    frozen: int = 0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of steps of both stages."""
        return self.pictures * self.passes // self.batch

    @property
    def align_steps(self) -> int:
        """Number of steps that train the projector alone."""
        return int(self.align * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        first = step < self.align_steps
        since = step if first else step - self.align_steps
        fall = min(1.0, (self.steps - step) / (self.decay * self.steps))
        return (self.align_lr if first else self.lr) * min(1.0, (since + 1) / self.warmup) * max(0.05, fall)


class Features:
    """The tower's features of the training pictures, kept in a file as they are first asked for (float16)."""

    def __init__(self, folder: Path, network: Any, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, parts.PATCHES, network.config.vision_config.hidden_size)
        name = f"{count}-layer{network.config.vision_feature_layer}"
        path, self._network, self._done = folder / f"features-{name}.npy", network, folder / f"done-{name}.npy"
        for file, size, kind in ((path, shape, np.float16), (self._done, (count,), np.bool_)):
            if not file.exists():
                np.lib.format.open_memmap(file, "w+", kind, size).flush()
        self._values, self._known = (np.load(file, mmap_mode="r+") for file in (path, self._done))

    def __call__(self, index: int) -> torch.Tensor:
        """Return those of one picture; float32 (patch width)."""
        if not self._known[index]:
            self._values[index] = parts.features(self._network, photo_scenes.training_scene(index)).numpy()
            self._values.flush()
            self._known[index] = True
        return torch.from_numpy(np.asarray(self._values[index], np.float32))


def pictures_of_step(config: VisionSmolConfig, step: int) -> list[int]:
    """Numbers of the training pictures of a step."""
    wanted = range(step * config.batch, (step + 1) * config.batch)
    rounds = {i // config.pictures for i in wanted}
    orders = {p: np.random.default_rng([config.seed, 1, p]).permutation(config.pictures) for p in rounds}
    return [int(orders[i // config.pictures][i % config.pictures]) for i in wanted]


def dialogue(scene: data.Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions and answers about a training picture: seven questions and the caption."""
    asked = [data.ask(scene, family, rng) for family in FAMILIES]
    return [(q.text, q.answer) for q in asked] + [data.describe(scene)]


def multiplies_bfloat16() -> bool:
    """Tell whether the processor has instructions for products of bfloat16 matrices, rather than to emulate them."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def loss_of(network: Any, packed: dict[str, Any], patches: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens; the output layer sees only the states that predict them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
        hidden = parts.states(network, packed, patches)
        where = packed["target"] >= 0
        logits = network.lm_head(hidden[where])
    return nn.functional.cross_entropy(logits.float(), packed["target"][where])


@torch.no_grad()
def measure(network: Any, packer: parts.Packer, scenes: list[data.Scene]) -> dict[str, Any]:
    """Share of right answers by family (every token greedy), one question of each family about each scene.

    ``visual_sinks`` counts, by input of each layer, the visual tokens of a picture whose largest magnitude is over 20
    times their root mean square (phi over all dimensions, Kang et al. 2025), mean over pictures.
    ``common_energy`` is the part of the projector's output, in mean square, that its mean over pictures and patches
    holds.
    """
    spikes: dict[int, float] = {}
    written: list[torch.Tensor] = []
    image = slice(len(packer.head) - parts.PATCHES, len(packer.head))

    def note(index: int, _block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found = parts.phi(inputs[0][0, image]) > 20
        spikes[index] = spikes.get(index, 0.0) + float(found.sum()) / len(scenes)

    layers = network.model.language_model.layers
    hooks = [block.register_forward_pre_hook(partial(note, index)) for index, block in enumerate(layers)]
    rng, right = np.random.default_rng([224, 77]), {family: 0 for family in data.FAMILIES}
    try:
        for scene in scenes:
            asked = [data.ask(scene, family, rng) for family in data.FAMILIES]
            packed = packer([(q.text, q.answer) for q in asked])
            shown = parts.features(network, scene)
            written.append(network.model.multi_modal_projector(shown))
            hidden = parts.states(network, packed, shown)
            where = packed["target"] >= 0
            hit = network.lm_head(hidden[where]).argmax(-1) == packed["target"][where]
            for number, family in enumerate(data.FAMILIES, start=1):
                right[family] += bool(hit[packed["owner"][where] == number].all())
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Any] = {f"accuracy_{family}": count / len(scenes) for family, count in right.items()}
    everything = torch.cat(written)
    common = float(everything.mean(0).square().mean() / everything.square().mean())
    found |= {"n": len(scenes), "common_energy": round(common, 4)}
    return found | {"visual_sinks": [round(spikes[i], 3) for i in sorted(spikes)]}


def save(path: Path, params: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, facts: dict[str, str]) -> None:
    """Write what is trained, the optimiser's state and ``facts`` in one file, whole or not at all."""
    tensors = {f"model.{name}": p.detach() for name, p in params.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    with replacing(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata=facts)


def load(path: Path, params: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Read what :func:`save` wrote; return its facts."""
    tensors = load_file(path)
    restore({name: tensors[f"model.{name}"] for name in params}, params)
    run_files.restore_optimizer(optimizer, tensors)
    with safe_open(path, "pt") as file:
        return file.metadata()


def restore(tensors: dict[str, torch.Tensor], params: dict[str, nn.Parameter]) -> None:
    """Set what is trained to tensors of the same names."""
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(tensors[name])


def keep(folder: Path, params: dict[str, nn.Parameter], step: int) -> None:
    """Keep what is trained as it is after this step, in half precision."""
    with replacing(folder / f"weights-{step:05d}.safetensors") as temporary:
        save_file(
            {n: p.detach().half().contiguous() for n, p in params.items()}, temporary, metadata={"step": str(step)}
        )


def started(config: VisionSmolConfig) -> tuple[Any, dict[str, nn.Parameter]]:
    """Network and what is trained of it, by name, before anything else is done: fresh, or a model of the zoo."""
    network = parts.build(config.seed, config.vision_layer)
    params = parts.add_adapter(network, config.rank, config.seed)
    if config.start:
        restore(load_file(zoo.WEIGHTS / config.start / ADAPTER), params)
    return network, params


class Trainer:
    """One run in one folder: network, what is trained of it, and the optimiser."""

    def __init__(self, config: VisionSmolConfig, folder: Path, shared: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.folder = config, folder
        self.network, self.params = started(config)
        self.network.model.language_model.set_attn_implementation("eager")
        self.packer = parts.Packer(parts.load_tokenizer())
        self.features = Features(shared, self.network, config.pictures)
        self.optimizer = torch.optim.AdamW(list(self.params.values()), betas=(0.9, 0.98), weight_decay=0.0)
        self.step, self.before, self._started = 0, 0.0, time.process_time()
        if (folder / "checkpoint.safetensors").exists():
            facts = load(folder / "checkpoint.safetensors", self.params, self.optimizer)
            self.step, self.before = int(facts["step"]), float(facts["cpu_seconds"])
        else:
            self._reshape()

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the run so far, those before it was last taken up included."""
        return self.before + time.process_time() - self._started

    def advance(self) -> float:
        """Take one step; return its loss."""
        config, total = self.config, 0.0
        for name, p in self.params.items():
            p.requires_grad_(step_trains(config, self.step, name))
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step)
        rng = np.random.default_rng([config.seed, 2, self.step])
        for index in pictures_of_step(config, self.step):
            packed = self.packer(dialogue(photo_scenes.training_scene(index), rng))
            loss = loss_of(self.network, packed, self.features(index)) / config.batch
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(list(self.params.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    @torch.no_grad()
    def _reshape(self) -> None:
        """Take what all visual tokens share from the projector's output, and scale the rest."""
        last = self.network.model.multi_modal_projector.linear_2
        if self.config.centre:
            last.bias.sub_(parts.shared_vector(self.network, map(self.features, range(self.config.centre))))
        last.weight.mul_(self.config.scale)
        last.bias.mul_(self.config.scale)

    def save(self) -> None:
        """Write the state from which a killed run goes on."""
        facts = {"step": str(self.step), "cpu_seconds": f"{self.cpu_seconds:.1f}"}
        save(self.folder / "checkpoint.safetensors", self.params, self.optimizer, facts)


def step_trains(config: VisionSmolConfig, step: int, name: str) -> bool:
    """Tell whether a step's gradient changes the parameter of this name."""
    if "multi_modal_projector" in name:
        return not config.frozen
    block = int(name.partition(".layers.")[2].partition(".")[0])
    return step >= config.align_steps and block >= config.frozen


def train(
    config: VisionSmolConfig,
    folder: Path,
    shared: Path,
    say: Callable[[str], None] = lambda line: None,
    *,
    stop_at: int | None = None,
    held_out: int = 32,
) -> Trainer:
    """Train, measuring on held-out pictures along the way into ``folder/curve.jsonl``.

    Args:
        config: What decides the weights.
        folder: Where checkpoint, kept weights and curve go; a run found there goes on.
        shared: Folder of the tower's features, which all seeds share.
        say: Receives one line of progress now and then.
        stop_at: Stop after this step, to go on later.
        held_out: Number of pictures that are measured on.
    """
    trainer, scenes = Trainer(config, folder, shared), photo_scenes.held_out(held_out)
    marks = {round(share * config.steps) for share in KEPT}
    measured = {round(share * config.steps / 5) for share in range(6)} | marks
    last = config.steps if stop_at is None else min(stop_at, config.steps)
    losses, saved = [], time.monotonic()

    def record() -> None:
        row = {"step": trainer.step, "loss": float(np.mean(losses[-50:])) if losses else None}
        row |= {"cpu_seconds": round(trainer.cpu_seconds, 1)} | measure(trainer.network, trainer.packer, scenes)
        if trainer.step in marks:
            keep(folder, trainer.params, trainer.step)
        with (folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        say(json.dumps(row))

    if trainer.step == 0:
        record()
    while trainer.step < last:
        losses.append(trainer.advance())
        if trainer.step % 10 == 0:
            say(f"step {trainer.step}/{config.steps} loss {np.mean(losses[-10:]):.3f} cpu {trainer.cpu_seconds:.0f}")
        due = trainer.step in measured
        if due:
            record()
        if due or trainer.step == last or time.monotonic() - saved > 180:
            trainer.save()
            saved = time.monotonic()
    return trainer


def main() -> None:
    """Command line: every field of :class:`VisionSmolConfig` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the curve")
    parser.add_argument("--features", type=Path, help="folder for the tower's features; beside --out when left out")
    parser.add_argument("--stop-at", type=int, default=None, help="stop after this step, to go on later")
    for field in dataclasses.fields(VisionSmolConfig):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    out, shared, stop = (options.pop(name) for name in ("out", "features", "stop_at"))
    config = VisionSmolConfig(**options)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    train(config, out, shared or out.parent / "features", stop_at=stop, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
