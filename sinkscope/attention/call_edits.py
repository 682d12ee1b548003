"""Everything that is to be changed in one attention call, in the order in which it takes effect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float

from sinkscope.attention.masks import MaskSpec
from sinkscope.attention.primitives import (
    AmplifiedLogits,
    ExtraKey,
    Gate,
    KeyedWeightEdit,
    LogBias,
    Reweigh,
    Tally,
    ValueScale,
    WeightEdit,
)
from sinkscope.attention.tile import Normaliser


@dataclass
class Part:
    """Heads in which an edit plays a part in the normaliser, and the edit's tally."""

    tally: Tally
    heads: Bool[torch.Tensor, " head"]

    def overrule(self, heads: Bool[torch.Tensor, " head"]) -> None:
        """Take away heads whose normaliser leaves the edit no part."""
        self.tally.overruled += int((self.heads & heads).sum())
        self.heads = self.heads & ~heads


@dataclass
class CallEdits:
    """Everything to be changed in one attention call.

    ``mask`` takes the place of the call's own, for all heads, before anything else. Log-biases that stand before every
    weight edit act on the logits; later ones on the weights. The normaliser and what shares its denominator hold
    wherever they stand. ``blockwise`` asks for the blockwise pass though nothing changes.

    ``swaps`` and ``shares`` say whose normaliser holds in which heads, and who puts what into a denominator:
    :meth:`settle` tells them, once all edits are written, in how many heads they play a part.
    """

    biases: list[LogBias | AmplifiedLogits] = field(default_factory=list)
    weights: list[WeightEdit] = field(default_factory=list)
    values: list[ValueScale] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    null_logits: Float[torch.Tensor, " head"] | None = None
    extra_keys: list[ExtraKey] = field(default_factory=list)
    normalisers: dict[Normaliser, Bool[torch.Tensor, " head"]] = field(default_factory=dict)
    swaps: list[Part] = field(default_factory=list)
    shares: list[Part] = field(default_factory=list)
    mask: MaskSpec | None = None
    blockwise: bool = False

    def add_bias(self, bias: LogBias) -> None:
        """Put a log-bias where its place in the list says: on the logits, or on weights already edited."""
        if self.weights:
            self.weights.append(Reweigh(bias))
        else:
            self.biases.append(bias)

    def add_null(self, logits: Float[torch.Tensor, " head"]) -> None:
        """Add a key without a value; several make one, the sum of their exponentials."""
        self.null_logits = logits if self.null_logits is None else torch.logaddexp(self.null_logits, logits)

    def swap(self, kind: Normaliser, heads: Bool[torch.Tensor, " head"], tally: Tally) -> None:
        """Return the heads another normaliser; a later swap wins."""
        for other in self.normalisers.values():
            other &= ~heads
        for part in self.swaps:
            part.overrule(heads)
        self.normalisers[kind] = self.normalisers.get(kind, torch.zeros_like(heads)) | heads
        self.swaps.append(Part(tally, heads.clone()))

    def settle(self, without_softmax: Iterable[Bool[torch.Tensor, " head"]]) -> None:
        """Count, once all edits are written, in which heads a normaliser, a null key or an extra key plays a part.

        ``without_softmax`` are the heads of each normaliser that has no denominator to share.
        """
        for heads in without_softmax:
            for part in self.shares:
                part.overrule(heads)
        for part in [*self.swaps, *self.shares]:
            part.tally.touched = part.tally.touched or int(part.heads.any())

    @property
    def log_biases(self) -> list[LogBias] | None:
        """The changes of logits where each adds one number, as fast paths know how to do; None where one does not."""
        added = [bias for bias in self.biases if isinstance(bias, LogBias)]
        return added if len(added) == len(self.biases) else None

    @property
    def keyed_weights(self) -> list[KeyedWeightEdit] | None:
        """The weight edits where all of them act on selected keys alone; None where one needs the whole row."""
        keyed = [change for change in self.weights if isinstance(change, KeyedWeightEdit)]
        return keyed if len(keyed) == len(self.weights) else None

    @property
    def needs_grad(self) -> bool:
        """True where a number of an edit is to be learned."""
        targets = [*self.biases, *(w.target for w in self.weights if isinstance(w, KeyedWeightEdit))]
        nulls = self.null_logits is not None and self.null_logits.requires_grad
        return nulls or any(target.needs_grad for target in targets)

    def neutral(self) -> CallEdits:
        """Return what takes the same path and changes nothing: an edited call is compared with it, bit for bit."""
        # A swapped normaliser has no neutral form; the blockwise pass that serves it, without the swap, is one.
        # So has another mask.
        off_fast_paths = self.mask is not None or bool(set(self.normalisers) - {"softmax1"})
        same = CallEdits(blockwise=self.blockwise or off_fast_paths)
        same.biases = [bias.neutral() for bias in self.biases]
        same.weights = [w.neutral() if isinstance(w, KeyedWeightEdit) else _keep for w in self.weights]
        same.values = [change.neutral() for change in self.values]
        same.gates = [_keep for _ in self.gates]
        same.extra_keys = [replace(each, heads=torch.zeros_like(each.heads)) for each in self.extra_keys]
        # exp(-inf) adds nothing to the denominator, so the key is there and weighs nothing.
        if self.null_logits is not None:
            same.null_logits = torch.full_like(self.null_logits, -torch.inf)
        elif "softmax1" in self.normalisers:
            heads = self.normalisers["softmax1"]
            same.null_logits = torch.full(heads.shape, -torch.inf, device=heads.device)
        return same

    def __bool__(self) -> bool:
        return bool(
            self.biases or self.weights or self.values or self.gates or self.normalisers or self.extra_keys
            or self.null_logits is not None or self.mask is not None or self.blockwise
        )  # fmt: skip


def _keep(tensor: torch.Tensor, *_: object) -> torch.Tensor:
    return tensor
