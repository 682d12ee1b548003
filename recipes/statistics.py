"""Sink statistics of a decoder, from eager attention: small models and small batches only.

Used while a model trains, where a plain second opinion matters more than speed. :func:`sinkscope.run` is the tool for
everything else and must give the same numbers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


UNNORMALISED = ("sigmoid", "relu")

FIRST = 5
"""Positions whose attention is kept one by one, for tokens that a recipe puts in front."""


@contextmanager
def recorded(modules: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
    """Record the outputs of modules, in float32 and in the order of their calls, while the context is open."""
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach().float())

    handles = [m.register_forward_hook(keep) for m in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: Any) -> list[Any]:
    """The blocks of a Llama-like or GPT-2-like decoder, in order."""
    inner = model.model if hasattr(model, "model") else model.transformer
    return list(inner.layers if hasattr(inner, "layers") else inner.h)


@torch.no_grad()
def sink_statistics(model: Any, ids: Int[torch.Tensor, "batch key"], predicted: int = 1) -> dict[str, Any]:
    """Sink statistics of a Llama-like model at the first token.

    Args:
        model: A causal language model of the Llama family (separate ``v_proj``).
        ids: Token ids; the first column is the sink candidate.
        predicted: The first token whose prediction counts in the loss.

    Returns:
        ``loss``: mean next-token cross-entropy in nats. ``alpha``: (layer, head) mean over all queries of the attention
        to key 0 (Gu et al. 2025, importance score); where rows do not sum to one by themselves (sigmoid, ReLU), of the
        row divided by its sum, for measurement only (the paper's proxy); with a sliding window, over the queries that
        see key 0, and ``oldest`` is then the attention of the others to the oldest key they see. ``value_ratio``:
        (layer, kv head) mean over sequences of the value norm of key 0 over the median of the others. ``massive``:
        (layer,) largest magnitude of the residual stream at key 0 after the block over the median magnitude of all
        entries (Sun et al. 2024); ``massive_value``, ``massive_dim``: that entry of the first sequence.
        ``residual_ratio``: (layer,) residual norm of key 0 over the median of the others. ``alpha_first``: (layer,
        position, head) alpha of each of the first five keys, over the queries from its own on, for tokens that a recipe
        puts in front. ``off_keys``: (layer, head) one minus the sum of the row, mean over queries: what a learned key
        takes.
    """
    layers = decoder_layers(model)
    previous = model.config._attn_implementation
    training = model.training
    model.eval()
    values = [layer.self_attn.v_proj for layer in layers]
    if previous == "sdpa":
        model.set_attn_implementation("eager")
    try:
        with recorded(values) as v, recorded(layers) as h:
            out = model(ids, output_attentions=True, use_cache=False)
    finally:
        if previous == "sdpa":
            model.set_attn_implementation(previous)
        model.train(training)
    maps = [a.float() for a in out.attentions]
    if getattr(model.config, "sinkscope_normaliser", "softmax") in UNNORMALISED:
        maps = [a / (a.abs().sum(-1, keepdim=True) + 1e-8) for a in maps]
    window = getattr(model.config, "sliding_window", None) or ids.shape[1]
    alpha = torch.stack([a[..., :window, 0].mean((0, 2)) for a in maps])
    first = [[a[..., k:, k].mean((0, 2)).tolist() for k in range(min(FIRST, ids.shape[1]))] for a in maps]
    off = [(1 - a.sum(-1)).mean((0, 2)).tolist() for a in maps]
    kv = model.config.num_key_value_heads
    ratios = torch.stack([_first_over_median(x.unflatten(-1, (kv, -1)).norm(dim=-1).transpose(1, 2)) for x in v])
    logits: Float[torch.Tensor, "batch query vocab"] = out.logits.float()
    oldest = [a.diagonal(1 - window, 2, 3)[..., 1:].mean((0, 2)).tolist() for a in maps]
    return ({"oldest": oldest} if window < ids.shape[1] else {}) | {
        "loss": float(_loss(logits[:, predicted - 1 : -1], ids[:, predicted:])),
        "alpha": alpha.tolist(),
        "alpha_first": first,
        "off_keys": off,
        "value_ratio": ratios.tolist(),
        "massive": [float((x[:, 0].abs().amax(-1) / x.abs().flatten(1).quantile(0.5, dim=1)).mean()) for x in h],
        "massive_value": [float(x[0, 0, int(x[0, 0].abs().argmax())]) for x in h],
        "massive_dim": [int(x[0, 0].abs().argmax()) for x in h],
        "residual_ratio": [float(_first_over_median(x.norm(dim=-1))) for x in h],
    }


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _first_over_median(norms: Float[torch.Tensor, "batch *more key"]) -> Float[torch.Tensor, "*more"]:
    return (norms[..., 0] / norms[..., 1:].median(-1).values).mean(0)


def summary(stats: dict[str, Any], threshold: float = 0.3) -> dict[str, float]:
    """Scalars of :func:`sink_statistics`: mean and largest alpha, share of heads over the threshold, drain, massive.

    ``sink_rate`` is over all heads, ``sink_rate_after_first`` over the heads of layers 1 and up; ``value_ratio`` is the
    median over layers 1 and up; ``massive`` the largest over layers; ``oldest_max``, with a sliding window, the largest
    mean attention to the oldest visible key over heads; ``alpha_second_mean`` the mean attention to the second key,
    ``sink_rate_third`` the share of heads of layers 1 and up over the threshold at the third; ``off_keys_mean``
    the mean share of a row that is on no token (a learned key).
    """
    alpha = torch.tensor(stats["alpha"])
    later = alpha[1:] if len(alpha) > 1 else alpha
    value = torch.tensor(stats["value_ratio"])
    value = value[1:] if len(value) > 1 else value
    oldest = {"oldest_max": float(torch.tensor(stats["oldest"]).max())} if "oldest" in stats else {}
    if "off_keys" in stats:
        oldest["alpha_second_mean"] = float(torch.tensor(stats["alpha_first"])[:, 1].mean())
        third = torch.tensor([layer[2] for layer in stats["alpha_first"]])
        oldest["sink_rate_third"] = float(((third[1:] if len(third) > 1 else third) > threshold).float().mean())
        oldest["off_keys_mean"] = float(torch.tensor(stats["off_keys"]).mean())
    return oldest | {
        "loss": stats["loss"],
        "alpha_mean": float(alpha.mean()),
        "alpha_max": float(alpha.max()),
        "sink_rate": float((alpha > threshold).float().mean()),
        "sink_rate_after_first": float((later > threshold).float().mean()),
        "value_ratio": float(value.median()),
        "value_ratio_min": float(value.min()),
        "massive": max(stats["massive"]),
        "residual_ratio": max(stats["residual_ratio"]),
    }
