"""Train Bigram-Backcopy transformers: ``python -m recipes.bigram_backcopy --arm bb-1l --out FOLDER``.

GPT-2 architecture with one head and a ReLU feed-forward block on the task of Guo et al. 2024. One run of one layer
takes about 20 seconds of one core, one of three layers about three minutes. Sequences are drawn anew at each step from
the seed, so a rerun gives equal weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config

from recipes.statistics import recorded
from sinkscope.errors import ModelError
from sinkscope.models import variants
from sinkscope.tasks.backcopy import SYMBOLS, Chain, risks, sample, sink_logit_gap, zipf_chain


@dataclasses.dataclass(frozen=True)
class BackcopyConfig:
    """What decides the weights. ``lr`` falls by a cosine to zero after ``warmup`` steps when ``cosine`` is set."""

    layers: int = 1
    width: int = 64
    length: int = 64
    batch: int = 32
    triggers: int = 8
    normaliser: str = "softmax"
    optimizer: str = "adamw"
    lr: float = 1e-2
    cosine: bool = True
    warmup: int = 50
    weight_decay: float = 1e-2
    steps: int = 600
    seed: int = 1


ARMS: dict[str, BackcopyConfig] = {
    "bb-1l": BackcopyConfig(),
    "bb-1l-relu": BackcopyConfig(normaliser="relu"),
    "bb-1l-k3": BackcopyConfig(triggers=3, steps=1000),
    "bb-3l": BackcopyConfig(layers=3, lr=3e-3, cosine=False, weight_decay=1e-4, steps=3000),
    "bb-3l-sgd": BackcopyConfig(layers=3, optimizer="sgd", lr=0.1, cosine=False, weight_decay=1e-4, steps=3000),
    "bb-3l-relu": BackcopyConfig(layers=3, normaliser="relu", lr=3e-3, cosine=False, weight_decay=1e-4, steps=3000),
}
"""The arms of the comparison: softmax or ReLU attention, one or three layers, AdamW or SGD with momentum."""


def build_model(config: BackcopyConfig) -> Any:
    """A fresh GPT-2 with one head, learned positions, ReLU feed-forward of four times the width and untied output."""
    torch.manual_seed(config.seed)
    model_config = GPT2Config(
        vocab_size=len(SYMBOLS) + 1,
        n_positions=config.length,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=1,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=len(SYMBOLS),
        eos_token_id=None,
    )
    model_config.update({"sinkscope_normaliser": config.normaliser, "sinkscope_triggers": list(range(config.triggers))})
    return variants.build(model_config)


def build_tokenizer() -> Tokenizer:
    """A tokenizer of one letter per token with ``<s>`` first: ``"A b C"`` gives ``<s> A b C``."""
    vocab = {symbol: i for i, symbol in enumerate(SYMBOLS)} | {"<s>": len(SYMBOLS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="-"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(SYMBOLS))])
    return tokenizer


@torch.no_grad()
def backcopy_statistics(model: Any, chain: Chain, ids: Int[torch.Tensor, "batch key"]) -> dict[str, Any]:
    """Everything Guo et al. 2024 follow along training, by layer where it has layers.

    Returns:
        ``bos_attention``: attention to ``<s>`` from non-trigger queries (the row of ``<s>`` included, as in the paper's
        code); ``bos_attention_trigger``: from triggers; ``drained_attention``: from non-trigger queries to ``<s>`` and
        trigger keys together; ``sink_logit_gap``: mean over non-trigger tokens; ``bos_value`` and ``other_value``:
        norm of W_O v of ``<s>`` and its median over other tokens; ``bos_residual`` and ``other_residual``: residual
        norm after each block, of ``<s>`` and its mean over other tokens; the risks of :func:`.backcopy_task.risks`.
        Attention under ReLU is the raw weight.
    """
    blocks = model.transformer.h
    previous = model.config._attn_implementation
    if previous == "sdpa":
        model.set_attn_implementation("eager")
    try:
        with recorded([b.attn.c_attn for b in blocks]) as qkv, recorded(list(blocks)) as residual:
            out = model(ids, output_attentions=True, use_cache=False)
    finally:
        if previous == "sdpa":
            model.set_attn_implementation(previous)
    plain = ids >= chain.triggers
    drained = ((ids < chain.triggers) | (ids == chain.bos)).float()
    stats: dict[str, list[float]] = {}
    for block, joint, hidden, weights in zip(blocks, qkv, residual, out.attentions, strict=True):
        query, key, value = joint.chunk(3, -1)
        gap = sink_logit_gap(query @ key.transpose(1, 2) * query.shape[-1] ** -0.5, ids, chain.vocab_size)
        written, norm = (value @ block.attn.c_proj.weight).norm(dim=-1), hidden.norm(dim=-1)
        row = {
            "bos_attention": weights[:, 0, :, 0][plain].mean(),
            "bos_attention_trigger": weights[:, 0, :, 0][~plain].mean(),
            "drained_attention": (weights[:, 0] * drained[:, None]).sum(-1)[plain].mean(),
            "sink_logit_gap": gap[chain.triggers : chain.bos].nanmean(),
            "bos_value": written[:, 0].mean(),
            "other_value": written[:, 1:].median(),
            "bos_residual": norm[:, 0].mean(),
            "other_residual": norm[:, 1:].mean(),
        }
        for name, number in row.items():
            stats.setdefault(name, []).append(float(number))
    return {**stats, **risks(chain, ids, out.logits)}


def learning_rate(config: BackcopyConfig, step: int) -> float:
    """Learning rate of a step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if not config.cosine:
        return config.lr
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * 0.5 * (1 + float(np.cos(np.pi * share)))


def _optimizer(model: Any, config: BackcopyConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    raise ModelError(f"optimizer={config.optimizer!r}: unknown. Use adamw or sgd.")


def _checkpoints(steps: int) -> set[int]:
    """Steps at which to measure: dense at first, then even in log time."""
    return {round(s) for s in np.geomspace(1, steps, 40)} | set(range(0, min(steps, 200), 20)) | {0, steps}


def train(
    config: BackcopyConfig,
    say: Callable[[str], None] = lambda line: None,
    keep: Callable[[Any, int], None] = lambda model, step: None,
) -> tuple[Any, list[dict[str, Any]], Chain]:
    """Train one arm and measure it along the way.

    Args:
        config: What decides the weights.
        say: Receives one line of progress per measurement.
        keep: Receives the model and the step at each measurement, to save it as it is then.

    Returns:
        The model, the curve (one row of :func:`backcopy_statistics` per measured step) and the chain.
    """
    chain = zipf_chain(len(SYMBOLS), config.triggers)
    model = build_model(config).train()
    optimizer = _optimizer(model, config)
    probe = sample(chain, 128, config.length, np.random.default_rng([0, 99]))
    curve: list[dict[str, Any]] = []
    measured = _checkpoints(config.steps)
    for step in range(config.steps + 1):
        if step in measured:
            curve.append({"step": step, **backcopy_statistics(model, chain, probe)})
            say(json.dumps({k: np.round(v, 3).tolist() for k, v in curve[-1].items()}))
            keep(model, step)
        if step == config.steps:
            break
        ids = sample(chain, config.batch, config.length + 1, np.random.default_rng([config.seed, step]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), curve, chain


def save_model(model: Any, folder: Path) -> None:
    """Write weights and tokenizer into ``folder``, which ``load_model`` then takes."""
    variants.save(model, folder)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "-"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2))


def save(model: Any, curve: list[dict[str, Any]], config: BackcopyConfig, folder: Path) -> None:
    """Write weights, tokenizer, curve and recipe of a run into ``folder``."""
    save_model(model, folder)
    rounded = [{k: np.round(v, 5).tolist() for k, v in row.items()} for row in curve]
    (folder / "curve.json").write_text(json.dumps(rounded))
    (folder / "recipe.json").write_text(json.dumps(dataclasses.asdict(config), indent=2))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=sorted(ARMS), default="bb-1l")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its curve")
    parser.add_argument("--checkpoints", action="store_true", help="also keep the model of each measured step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = dataclasses.replace(ARMS[options.arm], seed=options.seed)

    def keep(model: Any, step: int) -> None:
        if options.checkpoints:
            save_model(model, options.out / f"checkpoint-{step}")

    model, curve, _ = train(config, say=lambda line: print(line, flush=True), keep=keep)
    save(model, curve, config, options.out)


if __name__ == "__main__":
    main()
