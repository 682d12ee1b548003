"""Train the small language model of the zoo: ``python -m recipes.language_model --out FOLDER``.

Llama architecture, byte-level BPE with ``<s>`` first, Python standard-library source as text. A thousand steps take
seven minutes of one core; the card of a shipped model has its options and says how long it took. A killed run goes on
from its last checkpoint; a rerun with the same seed and number of threads on the same machine gives equal weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, MistralConfig

from recipes import corpus, run_files
from recipes.statistics import sink_statistics, summary
from sinkscope.files import replacing
from sinkscope.models import variants
from sinkscope.tasks import corpora

PAD = 1
"""Id of the padding token: one that no text holds."""


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """What decides the weights: model, data and optimiser.

    Variants: ``normaliser`` (softmax, softmax1, sigmoid, sigmoid_normalised, relu), ``extra_key`` (a learned key per
    head, without a value; ``extra_value`` gives it a learned one), ``value_bias`` (a learned vector added to every
    head's output), ``gate`` (a sigmoid gate per head; with ``gate_elements`` one per element of its output),
    ``positions`` (rotary, learned, alibi, none), ``bos=False`` (texts start without ``<s>``), ``window``
    (keys that a query sees, itself included; 0: all before it), ``prefix`` (so many first keys are seen by every
    query, and not predicted).
    Data of Gu et al. 2025 and Xiao et al. 2024, in training and measurement: ``fixed_at`` (the padding token stands at
    that position of every window; -1: nowhere), ``sink_token`` (it is put in front of every window: an embedding that
    stands for no text), ``random_first`` (so many tokens in front are drawn at random, ``<s>`` among them).

    ``lr`` is held constant after ``warmup`` steps and falls linearly to a twentieth over the last ``decay`` share of
    ``steps``. The first ``start_steps`` steps use ``start_batch`` and ``start_repeat_share`` instead of ``batch`` and
    ``repeat_share``. Weight decay acts on all matrices, not on norms. ``repeat_share`` is explained in
    :func:`recipes.corpus.windows`.
    """

    layers: int = 6
    heads: int = 4
    width: int = 128
    mlp: int = 344
    vocab: int = 1024
    length: int = 128
    batch: int = 16
    steps: int = 3600
    lr: float = 4e-3
    warmup: int = 100
    decay: float = 0.36
    weight_decay: float = 0.3
    betas: tuple[float, float] = (0.9, 0.95)
    init_std: float = 0.06
    repeat_share: float = 0.3
    start_steps: int = 0
    start_batch: int = 16
    start_repeat_share: float = 0.3
    bos: bool = True
    normaliser: str = "softmax"
    extra_key: bool = False
    extra_value: bool = False
    value_bias: bool = False
    gate: bool = False
    gate_elements: bool = False
    positions: str = "rotary"
    prefix: int = 0
    sink_token: bool = False
    fixed_at: int = -1
    random_first: int = 0
    window: int = 0
    seed: int = 0
    threads: int = 1


def learning_rate(config: LanguageModelConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, constant, linear fall."""
    fall = int(config.steps * config.decay)
    start = config.steps - fall
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if step < start:
        return config.lr
    return config.lr * max(0.05, (config.steps - step) / max(fall, 1))


def data_of_step(config: LanguageModelConfig, step: int) -> tuple[int, float]:
    """Batch size and share of repeating windows at a step."""
    if step < config.start_steps:
        return config.start_batch, config.start_repeat_share
    return config.batch, config.repeat_share


def tokens_seen(config: LanguageModelConfig, step: int) -> int:
    """Predicted tokens after ``step`` steps."""
    early = min(step, config.start_steps)
    return (early * config.start_batch + (step - early) * config.batch) * (config.length - 1)


def build_model(config: LanguageModelConfig) -> Any:
    """A fresh Llama, or the variant of it that ``config`` asks for, with the weights that ``config.seed`` gives.

    A window makes it a Mistral, which is a Llama with a sliding window: the same modules, drawn in the same order.
    """
    torch.manual_seed(config.seed)
    model_config = (MistralConfig if config.window else LlamaConfig)(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=config.init_std,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        # torch holds the embedding of a padding token at zero; one that stands in every text has to learn its own.
        pad_token_id=None if config.sink_token or config.fixed_at >= 0 else PAD,
    )
    if config.window:
        model_config.sliding_window = config.window
    same = ("normaliser", "extra_key", "value_bias", "gate", "positions", "prefix")
    extra: dict[str, Any] = {name: getattr(config, name) for name in same}
    extra |= {"gate": "element"} if config.gate_elements else {}
    extra |= {"extra_key": "value"} if config.extra_value else {}
    model_config.update({f"sinkscope_{k}": v for k, v in extra.items() if v not in (False, "softmax", "rotary")})
    return variants.build(model_config)


def build_optimizer(model: torch.nn.Module, config: LanguageModelConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def command(fields: dict[str, Any], step: int) -> str:
    """The command that repeats a run of ``step`` steps, from the fields of its config."""
    stopped = step if step < fields.get("steps", step) else None
    return run_files.command("language_model", fields, dataclasses.asdict(LanguageModelConfig()), stopped)


def prepare(config: LanguageModelConfig, folder: Path, root: Path | None = None) -> tuple[Tokenizer, Any, Any]:
    """Read or make the tokenizer and the two token streams (training, held-out) in ``folder``."""
    paths = folder / "tokenizer.json", folder / "train.npy", folder / "held_out.npy"
    if all(p.exists() for p in paths):
        return Tokenizer.from_file(str(paths[0])), np.load(paths[1]), np.load(paths[2])
    base = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    train, test = corpora.split_files(corpora.stdlib_files(base), base)
    texts = corpora.read_texts(train)
    tokenizer = corpus.train_tokenizer(texts, config.vocab)
    streams = corpus.encode(tokenizer, texts), corpus.encode(tokenizer, corpora.read_texts(test))
    tokenizer.save(str(paths[0]))
    np.save(paths[1], streams[0])
    np.save(paths[2], streams[1])
    return tokenizer, *streams


def save_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, optimiser state and step as one safetensors file, whole or not at all."""
    tensors = {f"model.{k}": v.detach() for k, v in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    with replacing(folder / "checkpoint.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step)})


def load_checkpoint(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read the checkpoint of ``folder`` into model and optimiser; 0 when there is none."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    run_files.restore_optimizer(optimizer, tensors)
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def train(
    config: LanguageModelConfig,
    folder: Path,
    root: Path | None = None,
    measure_every: int = 200,
    say: Callable[[str], None] = lambda line: None,
    stop_at: int | None = None,
) -> Any:
    """Train, measuring sinks on held-out text every ``measure_every`` steps into ``folder/curve.jsonl``.

    Args:
        config: What decides the weights.
        folder: Where tokenizer, token streams, checkpoint and curve go; a run found there goes on.
        root: Folder of Python source; the standard library when left out.
        measure_every: Steps between measurements and checkpoints.
        say: Receives one line of progress per measurement.
        stop_at: Stop at this step, as a killed run would, to go on later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    _, stream, held_out = prepare(config, folder, root)
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    step = load_checkpoint(folder, model, optimizer)
    drawn = np.random.default_rng(1)
    probe = torch.from_numpy(arranged(corpus.windows(held_out, 64, 64, drawn, bos=config.bos), config, drawn))
    running, started = 0.0, time.process_time() - _seconds_before(folder)
    last = config.steps if stop_at is None else min(stop_at, config.steps)
    while step < last:
        loss = _one_step(model, optimizer, config, step, stream)
        running = loss if running == 0.0 else 0.98 * running + 0.02 * loss
        step += 1
        if step % measure_every == 0 or step == last or step == 1:
            stats = sink_statistics(model, probe, max(config.prefix, 1 + config.sink_token))
            seconds = time.process_time() - started
            row = {"step": step, "tokens": tokens_seen(config, step), "train_loss": running}
            row |= summary(stats) | {"cpu_seconds": seconds} | {"detail": stats}
            with (folder / "curve.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            save_checkpoint(folder, model, optimizer, step)
            say(" ".join(f"{k}={v:.4g}" for k, v in row.items() if k != "detail"))
    return model


def arranged(ids: NDArray[np.int64], config: LanguageModelConfig, rng: np.random.Generator) -> NDArray[np.int64]:
    """Windows with the token that always stands at one place, and with random tokens in front, as ``config`` asks.

    Windows keep their length: a sink token pushes the last one out.
    """
    if config.random_first:
        ids[:, : config.random_first] = rng.integers(2, config.vocab, (len(ids), config.random_first))
    if config.fixed_at >= 0:
        ids[:, config.fixed_at] = PAD
    if config.sink_token:
        ids = np.concatenate([np.full_like(ids[:, :1], PAD), ids[:, :-1]], axis=1)
    return ids


def next_token_loss(
    logits: Float[torch.Tensor, "batch query vocab"], ids: Int[torch.Tensor, "batch key"], config: LanguageModelConfig
) -> Float[torch.Tensor, ""]:
    """Mean cross-entropy in nats of the tokens ``ids[:, 1:]``, a prefix and what stands behind a sink token left out.

    A prefix is seen by every query, so its tokens could be copied. What follows a sink token follows no text.
    """
    first = max(config.prefix, 1 + config.sink_token)
    return torch.nn.functional.cross_entropy(logits[:, first - 1 :].flatten(0, 1), ids[:, first:].flatten())


def _seconds_before(folder: Path) -> float:
    curve = folder / "curve.jsonl"
    return json.loads(curve.read_text().splitlines()[-1])["cpu_seconds"] if curve.exists() else 0.0


def _one_step(
    model: Any, optimizer: torch.optim.Optimizer, config: LanguageModelConfig, step: int, stream: NDArray[np.uint16]
) -> float:
    rng = np.random.default_rng([config.seed, step])
    batch, repeat_share = data_of_step(config, step)
    ids = torch.from_numpy(
        arranged(corpus.windows(stream, batch, config.length, rng, repeat_share, config.bos), config, rng)
    )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    logits = model(ids[:, :-1], use_cache=False).logits
    loss = next_token_loss(logits, ids, config)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def main() -> None:
    """Command line: every field of :class:`LanguageModelConfig` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the curve")
    parser.add_argument("--measure-every", type=int, default=200)
    parser.add_argument("--stop-at", type=int, default=None, help="stop at this step of the schedule, to go on later")
    for field in dataclasses.fields(LanguageModelConfig):
        if field.name == "betas":
            continue
        kind = (lambda text: text.lower() in ("1", "true", "yes")) if field.type == "bool" else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = vars(parser.parse_args())
    out, every, stop = (options.pop(name) for name in ("out", "measure_every", "stop_at"))
    config = LanguageModelConfig(**options)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2))
    train(config, out, measure_every=every, stop_at=stop, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
