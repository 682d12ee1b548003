"""One tile of a call: some heads x some rows x the keys those rows can see, and the memory it is computed in.

Heads are flat inside a tile: batch and head together on one axis, so that a tile may hold the heads of several prompts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

from sinkscope.attention.masks import MaskSpec


@dataclass
class Tile:
    """Where a tile lies in its call, and what its rows hold besides the keys.

    ``off_keys`` is the share of each row that is on no key (learned sink, null or extra key), None where there is none.
    ``off_keys_scale`` gathers what weight edits multiply that share by, so that the extra keys' output follows.
    """

    batch: Int[torch.Tensor, " flat"]
    head: Int[torch.Tensor, " flat"]
    rows: slice
    cols: slice
    mask: MaskSpec
    off_keys: Float[torch.Tensor, "flat query"] | None = None
    off_keys_scale: Float[torch.Tensor, "flat query"] | None = None

    @property
    def visible(self) -> Bool[torch.Tensor, "flat query key"] | None:
        """Which keys each query of the tile sees; None where all of them."""
        seen = self.mask.visible(self.rows, self.cols)
        return None if seen is None else seen[self.batch]

    def scale_off_keys(self, factor: Float[torch.Tensor, "flat query"]) -> None:
        """Multiply the share that is on no key, so that it is renormalised with the keys."""
        if self.off_keys is not None:
            self.off_keys = self.off_keys * factor
            self.off_keys_scale = factor if self.off_keys_scale is None else self.off_keys_scale * factor


Normaliser = str | Callable[[Float[torch.Tensor, "flat query key"], Tile], Float[torch.Tensor, "flat query key"]]
"""Names a normaliser, or takes the logits of a tile (``HIDDEN_LOGIT`` where hidden) and returns its weights."""


class Scratch:
    """Two buffers that every tile of a call is computed in, and one for the tile's output.

    Fresh memory would cost more than the arithmetic in it: the system zeroes each page at its first touch. On CPU the
    buffers therefore outlive the call and serve the next layer; on other devices the allocator of PyTorch does that.
    """

    _kept = threading.local()

    def __init__(self, size: int, out: int, device: torch.device) -> None:
        self.logits, self.weights = torch.empty(size, device=device), torch.empty(size, device=device)
        self.out = torch.empty(out, device=device)

    @classmethod
    def take(cls, size: int, out: int, device: torch.device) -> Scratch:
        """Return buffers of at least these sizes; who takes them twice before giving them back gets new ones."""
        kept = cls._kept.__dict__.pop("scratch", None) if device.type == "cpu" else None
        if kept is None or len(kept.logits) < size or len(kept.out) < out:
            return cls(size, out, device)
        return kept

    def give_back(self) -> None:
        """Keep the buffers for the next call of this thread."""
        if self.logits.device.type == "cpu":
            self._kept.scratch = self

    @staticmethod
    def view(buffer: Float[torch.Tensor, " number"], *shape: int) -> torch.Tensor:
        """Return the first numbers of a buffer, shaped."""
        return buffer[: math.prod(shape)].view(shape)


@dataclass
class TileInputs:
    """What a tile is computed from: its own queries, already scaled, and all keys and values of its heads.

    ``key`` has one entry per key-value head: the query heads of a group share it without a copy, as ``query`` can be
    read as (kv, group x query, dim). ``value`` is the same unless an edit changed it for each head. ``where`` holds
    batch and head of each flat head. ``scratch`` is None where autograd must keep what a tile makes.
    """

    query: Float[torch.Tensor, "flat query dim"]
    key: Float[torch.Tensor, "kv key dim"]
    value: Float[torch.Tensor, "flat_or_kv key vdim"]
    where: tuple[Int[torch.Tensor, " flat"], Int[torch.Tensor, " flat"]]
    rows: slice
    scratch: Scratch | None

    def product_with_keys(self, cols: slice) -> Float[torch.Tensor, "flat query key"]:
        """Return the logits before soft cap, bias and mask."""
        flat, rows, dim = self.query.shape
        query, key = self.query.reshape(len(self.key), -1, dim), self.key[:, cols].transpose(1, 2)
        if self.scratch is None:
            return torch.bmm(query, key).view(flat, rows, -1)
        out = self.scratch.view(self.scratch.logits, len(key), query.shape[1], key.shape[2])
        return torch.bmm(query, key, out=out).view(flat, rows, -1)

    def product_with_values(
        self, weights: Float[torch.Tensor, "flat query key"], cols: slice
    ) -> Float[torch.Tensor, "flat query vdim"]:
        """Return the weighted sums of the values."""
        flat, rows, keys = weights.shape
        value = self.value[:, cols]
        weights = weights.reshape(len(value), -1, keys)
        if self.scratch is None:
            return torch.bmm(weights, value).view(flat, rows, -1)
        out = self.scratch.view(self.scratch.out, len(value), weights.shape[1], value.shape[2])
        return torch.bmm(weights, value, out=out).view(flat, rows, -1)

    def logit_of(self, key: Float[torch.Tensor, "head dim"]) -> Float[torch.Tensor, "flat query"]:
        """Return the logits of one further key per head."""
        return torch.einsum("fqd,fd->fq", self.query, key.float()[self.where[1]])
