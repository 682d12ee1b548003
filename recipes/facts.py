"""Facts of the model cards: measured on the finished model, compared with what the papers report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from recipes import corpus
from recipes.statistics import sink_statistics, summary
from sinkscope.tasks.backcopy import Chain, risks, sample

Row = dict[str, Any]


def claim(text: str, paper: str, measured: Any, agrees: bool | None, over: str | None = None) -> Row:
    """One line of a card: what the paper says, what was measured, and whether they agree (None: cannot be said).

    ``over="seeds"`` says that ``measured`` has one number per seed; a claim holds when it holds in each.
    """
    row = {"claim": text, "paper": paper, "measured": measured, "agrees": agrees}
    return row | ({"over": over} if over else {})


@torch.no_grad()
def without_parts(model: Any, chain: Chain, seed: int = 5) -> dict[str, dict[str, float]]:
    """Risks with each kind of sub-block's output set to zero: ``full``, ``no_attention``, ``no_mlp``."""
    length = model.config.n_positions
    ids = sample(chain, 128, length, np.random.default_rng([seed, 7]))
    parts = {"full": [], "no_attention": [], "no_mlp": []}
    for block in model.transformer.h:
        parts["no_attention"].append(block.attn.c_proj)
        parts["no_mlp"].append(block.mlp)
    out = {}
    for name, modules in parts.items():
        handles = [m.register_forward_hook(lambda _m, _i, output: torch.zeros_like(output)) for m in modules]
        try:
            out[name] = risks(chain, ids, model(ids, use_cache=False).logits)
        finally:
            for handle in handles:
                handle.remove()
    return out


def log_growth(curve: list[Row], from_share: float = 0.1) -> dict[str, float]:
    """Straight line of the first layer's sink logit gap against ln(step) over the later part of training.

    Returns:
        ``slope`` per e-fold of steps, ``r2`` of that line, ``r2_linear`` of one in the step itself, ``n`` points.
    """
    last = curve[-1]["step"]
    rows = [r for r in curve if r["step"] >= max(from_share * last, 1)]
    t = np.array([r["step"] for r in rows], dtype=float)
    x, y = np.log(t), np.array([r["sink_logit_gap"][0] for r in rows])
    if len(rows) < 3 or np.ptp(y) == 0:
        return {"slope": float("nan"), "r2": float("nan"), "r2_linear": float("nan"), "n": len(rows)}
    slope, _ = np.polyfit(x, y, 1)
    squared = [float(np.corrcoef(v, y)[0, 1] ** 2) for v in (x, t)]
    return {"slope": float(slope), "r2": squared[0], "r2_linear": squared[1], "n": len(rows)}


def _head_claims(rows: list[Row], normaliser: str) -> list[Row]:
    softmax = normaliser == "softmax"
    dormant = [row["bos_attention"][0] for row in rows]
    active = [row["bos_attention_trigger"][0] for row in rows]
    drain = [row["bos_value"][0] / row["other_value"][0] for row in rows]
    return [
        claim(
            "Attention from non-trigger queries to <s>, layer 0 (dormant)",
            f"{'about 1' if softmax else 'about 0'} for {normaliser}",
            dormant,
            min(dormant) > 0.5 if softmax else max(dormant) < 0.1,
            over="seeds",
        ),
        claim(
            "Attention from trigger queries to <s>, layer 0 (active)",
            "about 0",
            active,
            max(active) < 0.05,
            over="seeds",
        ),
        claim(
            "Norm of W_O v of <s> over the median of other tokens, layer 0 (drain)",
            "near 0" if softmax else "no drain",
            drain,
            max(drain) < 0.3 if softmax else min(drain) > 0.3,
            over="seeds",
        ),
        *([_both_drained(rows)] if softmax else []),
    ]


def _both_drained(rows: list[Row]) -> Row:
    """Trigger keys carry no value either and compete with ``<s>`` for the queries that have nothing to do."""
    together = [row["drained_attention"][0] for row in rows]
    return claim(
        "Attention from non-trigger queries to <s> and trigger keys together, layer 0",
        "about 1 on <s> alone",
        together,
        min(together) > 0.9,
        over="seeds",
    )


def _part_claims(parts: dict[str, dict[str, float]]) -> list[Row]:
    copy = [parts[k]["backcopy_risk"] for k in ("full", "no_attention")]
    bigram = [parts[k]["bigram_excess"] for k in ("full", "no_mlp")]
    return [
        claim(
            "Attention does the back-copy: its risk with and without attention, nats",
            "near the uniform guess (4.17) without",
            copy,
            copy[1] > 1.5 > copy[0],
        ),
        claim(
            "The feed-forward block does the bigrams: excess risk with and without it, nats",
            "large without",
            bigram,
            bigram[1] > 5 * bigram[0],
        ),
    ]


def _dynamics_claims(rows: list[Row], growth: dict[str, float], recipe: Row) -> list[Row]:
    softmax = recipe["normaliser"] == "softmax"
    claims = []
    if softmax:
        note = " (learning rate falls, so not judged)" if recipe["cosine"] else ""
        claims.append(
            claim(
                f"Sink logit gap over time: R2 of a line in ln(step), and of one in the step itself{note}",
                "grows like ln(step)",
                [growth["r2"], growth["r2_linear"]],
                None if recipe["cosine"] else growth["r2"] > max(0.8, growth["r2_linear"]),
            )
        )
    if recipe["layers"] > 1:
        peak = [row["bos_residual"][0] / row["other_residual"][0] for row in rows]
        peaked = recipe["optimizer"] == "adamw" and softmax
        claims.append(
            claim(
                "Residual norm of <s> after block 0 over the mean of other tokens (peak)",
                "several times" if peaked else "no peak",
                peak,
                min(peak) > 2 if peaked else max(peak) < 2,
                over="seeds",
            )
        )
    return claims


def backcopy_facts(
    model: Any, curves: dict[int, list[Row]], shipped: int, chain: Chain, recipe: Row
) -> tuple[Row, list[Row]]:
    """Facts and claims of a Bigram-Backcopy card.

    Args:
        model: The shipped model.
        curves: Curve of every seed that was run; claims hold over all of them.
        shipped: Seed of the shipped model.
        chain: The task's chain.
        recipe: Fields of the recipe.
    """
    rows = [curve[-1] for curve in curves.values()]
    parts = without_parts(model, chain)
    growth = log_growth(curves[shipped])
    claims = _head_claims(rows, recipe["normaliser"]) + _part_claims(parts) + _dynamics_claims(rows, growth, recipe)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_by_seed": {str(seed): curve[-1] for seed, curve in curves.items()},
        "shipped_seed": shipped,
        "risks_without_parts": parts,
        "sink_gap_against_log_time": growth,
        "oracle_bigram_risk": parts["full"]["bigram_risk"] - parts["full"]["bigram_excess"],
    }
    return facts, claims


def _probe(kind: str, stream: NDArray[np.uint16], vocab: int, bos: bool) -> Int[torch.Tensor, "batch key"]:
    rng = np.random.default_rng(17)
    ids = corpus.windows(stream, 100, 64, rng, repeat_share=float(kind == "repeated span"), bos=bos)
    if kind == "random tokens":
        ids[:, int(bos) :] = rng.integers(2, vocab, size=ids[:, int(bos) :].shape)
    if kind == "one token repeated":
        ids[:, 0:] = ids[:, 1:2]
    return torch.from_numpy(ids)


def language_model_facts(model: Any, held_out: NDArray[np.uint16], bos: bool = True) -> tuple[Row, list[Row]]:
    """Facts and claims of a language model's card, on 100 held-out windows of 64 tokens."""
    kinds = "natural", "repeated span", "random tokens", "one token repeated"
    measured = {k: sink_statistics(model, _probe(k, held_out, model.config.vocab_size, bos)) for k in kinds}
    natural = measured["natural"]
    alpha = np.array(natural["alpha"])
    later = alpha[1:]
    rates = {k: [float((np.array(v["alpha"]) > t).mean()) for t in (0.2, 0.3, 0.5)] for k, v in measured.items()}
    drains = np.array(natural["value_ratio"])
    sinks = alpha > 0.3
    drained = float(np.median(drains[sinks])) if sinks.any() and drains.shape == alpha.shape else float("nan")
    dims = natural["massive_dim"][1:-1]
    claims = [
        claim("Share of heads beyond layer 0 over .3 on the first token, T = 64", "target: at least 1/3",
              float((later > 0.3).mean()), bool((later > 0.3).mean() >= 1 / 3)),
        claim("Value norm of the first token over the median of others, median of the heads over .3",
              "target: under .3", drained, bool(drained < 0.3)),
        claim("Largest magnitude at the first token over the median magnitude, best layer", "target: over 100",
              max(natural["massive"]), max(natural["massive"]) > 100),
        claim("The massive dimension is the same in all middle layers", "fixed", dims, len(set(dims)) == 1),
        claim("Random tokens have sinks too, share of heads over .3 (Gu et al.)", "somewhat lower than natural",
              rates["random tokens"][1], rates["random tokens"][1] > 0.5 * rates["natural"][1]),
        claim("One token repeated, share of heads over .3 (Gu et al.)", "0 for rotary positions",
              rates["one token repeated"][1], rates["one token repeated"][1] < 0.02),
    ]  # fmt: skip
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "summary": summary(natural),
        "alpha": alpha.round(4).tolist(),
        "value_ratio": drains.round(4).tolist(),
        "massive_by_layer": natural["massive"],
        "massive_value": natural["massive_value"],
        "massive_dim": natural["massive_dim"],
        "residual_ratio_by_layer": natural["residual_ratio"],
        "sink_rate_at_.2_.3_.5": rates,
        "alpha_mean_by_input": {k: float(np.mean(v["alpha"])) for k, v in measured.items()},
    }
    return facts, claims
