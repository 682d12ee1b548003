"""Attention without the plain softmax, row by row: what the logits of one row become, each a few lines.

``SwapNormaliser`` names them. Every function gets the logits of a tile (flat query key) and which keys the query sees,
and returns weights; hidden keys get 0. Kernels of queries and keys do not look at the logits and are made for a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.call import Call
from sinkscope.attention.masks import HIDDEN_LOGIT
from sinkscope.attention.normalise import EPS, over_sum
from sinkscope.attention.tile import Tile

Logits = Float[torch.Tensor, "flat query key"]
Seen = Bool[torch.Tensor, "flat query key"]


def _softmax(logits: Logits, seen: Seen) -> Logits:
    return torch.softmax(logits.masked_fill(~seen, HIDDEN_LOGIT), -1) * seen


def _sigmoid(logits: Logits, seen: Seen) -> Logits:
    return over_sum(logits.sigmoid(), seen)


def _elu(logits: Logits, seen: Seen) -> Logits:
    return over_sum(torch.nn.functional.elu(logits) + 1, seen)


def _softplus(logits: Logits, seen: Seen) -> Logits:
    return over_sum(torch.nn.functional.softplus(logits), seen)


def _temperature(logits: Logits, seen: Seen, tau: float) -> Logits:
    return _softmax(logits / tau, seen)


def _softpick(logits: Logits, seen: Seen) -> Logits:
    # A hidden key counts neither above nor below the line: exp(-inf) - 1 would be -1 there.
    top = logits.masked_fill(~seen, -math.inf).amax(-1, keepdim=True).clamp(min=0.0)
    shifted = ((logits - top).exp() - (-top).exp()) * seen
    return shifted.relu() / (shifted.abs().sum(-1, keepdim=True) + EPS * (-top).exp())


def _clipped(logits: Logits, seen: Seen, zeta: float, gamma: float) -> Logits:
    return ((zeta - gamma) * _softmax(logits, seen) + gamma).clamp(0.0, 1.0) * seen


def _affine(logits: Logits, seen: Seen, alpha: float, mean: float) -> Logits:
    return (alpha * _softmax(logits, seen) + (mean - alpha) / _count(seen)) * seen


def _selective(logits: Logits, seen: Seen, alpha: float) -> Logits:
    return _softmax(logits * (1 + alpha * _count(seen).log()), seen)


def _identity(logits: Logits, seen: Seen) -> Logits:
    scores = logits.masked_fill(~seen, 0.0)
    return scores / scores.sum(-1, keepdim=True).abs().clamp(min=1.0)


def _count(seen: Seen) -> torch.Tensor:
    return seen.sum(-1, keepdim=True).clamp(min=1).float()


ROWS: dict[str, tuple[Callable[..., Logits], tuple[float, ...]]] = {
    "sigmoid_normalised": (_sigmoid, ()),
    "elu_normalised": (_elu, ()),
    "softplus": (_softplus, ()),
    "softpick": (_softpick, ()),
    "clipped": (_clipped, (1.03, -0.03)),
    "affine": (_affine, (0.3, 0.6)),
    "temperature": (_temperature, (2.0,)),
    "selective": (_selective, (math.exp(-1),)),
    "identity": (_identity, ()),
}
"""Functions of a row by name, and the defaults of their parameters."""


def _kernel(call: Call, tile: Tile, features: Callable[[torch.Tensor], torch.Tensor]) -> Logits:
    """phi(q) phi(k) of a tile, over the sum of the keys the query sees, or 1 where that is larger."""
    head = tile.head // call.group
    query = features(call.query[tile.batch, tile.head, tile.rows].float() * math.sqrt(call.scale))
    key = features(call.key[tile.batch, head, tile.cols].float() * math.sqrt(call.scale))
    scores = query @ key.transpose(1, 2)
    seen = torch.ones_like(scores, dtype=torch.bool) if tile.visible is None else tile.visible
    scores = scores * seen
    return scores / scores.sum(-1, keepdim=True).abs().clamp(min=1.0)


def _elu_kernel(call: Call, logits: Logits, tile: Tile) -> Logits:
    return _kernel(call, tile, lambda x: torch.nn.functional.elu(x) + 1)


def _mlp_kernel(call: Call, logits: Logits, tile: Tile, seed: float) -> Logits:
    dim = call.query.shape[-1]
    generator = torch.Generator().manual_seed(int(seed))
    first, second = (
        torch.randn(dim, dim, generator=generator).to(logits.device) * math.sqrt(2 / dim) for _ in range(2)
    )
    return _kernel(call, tile, lambda x: (x @ first).relu() @ second)


def _lucid(call: Call, logits: Logits, tile: Tile) -> Logits:
    """Softmax weights times the inverse of exp(k k' / sqrt(d) - sqrt(d)), keys at root mean square 1."""
    seen = logits > HIDDEN_LOGIT / 2
    key = call.key[tile.batch, tile.head // call.group, tile.cols].float()
    key = torch.nn.functional.rms_norm(key, key.shape[-1:], eps=1e-6)
    root = math.sqrt(key.shape[-1])
    linalg: Any = torch.linalg  # untyped
    similar = torch.exp(key @ key.transpose(1, 2) / root - root)
    shown = seen.any(1)
    other = ~(shown[:, :, None] & shown[:, None])
    similar = torch.where(other, torch.eye(similar.shape[-1], device=similar.device), similar)
    weights = _softmax(logits, seen)
    if call.mask.kind == "full":
        return linalg.solve(similar, weights, left=False)
    return linalg.solve_triangular(similar.tril(), weights, upper=False, left=False)


KERNELS: dict[str, tuple[Callable[..., Logits], tuple[float, ...]]] = {
    "elu_kernel": (_elu_kernel, ()),
    "mlp_kernel": (_mlp_kernel, (0.0,)),
    "lucid": (_lucid, ()),
}
"""Functions of a call's queries and keys by name, and the defaults of their parameters."""


def normaliser(kind: str, call: Call, parameters: tuple[float, ...]) -> str | Callable[[Logits, Tile], Logits]:
    """Return what ``EditedCall.normalise`` takes for one kind: a name that the pass knows, or a function."""
    if kind in ROWS:
        row = ROWS[kind][0]
        return lambda logits, _: row(logits, logits > HIDDEN_LOGIT / 2, *parameters)
    if kind in KERNELS:
        kernel = KERNELS[kind][0]
        return lambda logits, tile: kernel(call, logits, tile, *parameters)
    return kind
