"""Edits that select keys: scaled, masked, dropped, shifted, steered, or without their value."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.errors import EditError


@dataclass(frozen=True, repr=False)
class ScaleKeys(AttentionEdit):
    """Multiply the weight of the selected keys by ``gamma`` and renormalise the row (Han et al. 2025, ZeroTuning).

    The same as adding log gamma to the logit, which is how it is done: exact in every row, and the learned sink of a
    model that has one is part of the row. ``gamma=0`` is :class:`MaskKeys`; ``gamma=1`` is no edit at all. At decoding
    steps it holds for every new query.
    """

    papers = ("han2025",)
    gamma: float
    _: KW_ONLY
    keys: Any = "first"

    def __post_init__(self) -> None:
        """Check gamma and the selectors."""
        self._number("gamma", low=0.0, hint="Use gamma=0 to mask the keys.")
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Gamma 1."""
        return self.gamma == 1.0

    def change_attention(self, call: EditedCall) -> None:
        """Add log gamma to the logits."""
        # gamma w_k / (sum + (gamma - 1) w_k) is the softmax of z_k + log gamma: no map is needed to scale and
        # renormalise.
        call.add_log_bias(call.keys(), math.log(self.gamma) if self.gamma > 0 else -math.inf)


@dataclass(frozen=True, repr=False)
class MaskKeys(AttentionEdit):
    """Hide the selected keys before the softmax; ``keep_self=True`` leaves each query its own key.

    A query that sees nothing but masked keys is left unchanged and counted.
    """

    papers = ("kang2025",)
    keys: Any
    _: KW_ONLY
    keep_self: bool = False

    def change_attention(self, call: EditedCall) -> None:
        """Set the logits to minus infinity."""
        call.add_log_bias(call.keys(), -math.inf, self.keep_self)


@dataclass(frozen=True, repr=False)
class DropKeys(AttentionEdit):
    """Set the weights of the selected keys to 0 after the softmax, without renormalising.

    Rows then sum to less than before; a row left with no key gives a zero output. ``keep_self=True`` leaves each query
    its own key.
    """

    papers = ("kang2025",)
    keys: Any
    _: KW_ONLY
    keep_self: bool = False

    def change_attention(self, call: EditedCall) -> None:
        """Set the weights to 0."""
        # After the softmax: the sink still takes its share, and what it took is lost instead of handed on.
        call.scale_weights(call.keys(), 0.0, self.keep_self)


@dataclass(frozen=True, repr=False)
class ZeroValues(AttentionEdit):
    """Set the value vectors of the selected keys to 0: the weights stay, what they carry is gone (value ablation).

    ``queries`` does not apply: a value is the same for every query.
    """

    papers = ("guo2024",)
    keys: Any

    def __post_init__(self) -> None:
        """Check the selectors."""
        super().__post_init__()
        self._refuse_queries("a value vector is the same for every query. Use DropKeys to act on some rows")

    def change_attention(self, call: EditedCall) -> None:
        """Set the values to 0."""
        # The weights stay, so the sink keeps its use as a place where nothing is read, if its value was near zero.
        call.change_values(call.keys(), 0.0)


@dataclass(frozen=True, repr=False)
class ShiftLogits(AttentionEdit):
    """Add the constant ``bias`` to the logits of the selected keys."""

    papers = ("han2025",)
    bias: float
    _: KW_ONLY
    keys: Any = "first"

    def __post_init__(self) -> None:
        """Check the bias and the selectors."""
        self._number("bias", hint="Use MaskKeys to hide keys.")
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Bias 0."""
        return self.bias == 0.0

    def change_attention(self, call: EditedCall) -> None:
        """Add the bias to the logits."""
        call.add_log_bias(call.keys(), self.bias)


@dataclass(frozen=True, repr=False)
class SteerKeys(AttentionEdit):
    """Turn attention towards the selected keys of the prompt (PASTA, Zhang et al. 2023).

    ``mode="exclude"`` (the paper): every prompt key that is not selected gets its weight times ``alpha`` (0.01), rows
    renormalised. ``mode="include"`` (as coded): those keys get their weight divided by ``alpha``, so alpha must exceed
    1 for the same direction. ``mode="generation"`` does it to all prompt keys, so that attention turns to what the
    model has written; ``keys`` are then left out. Generated keys are left alone. All suppress the sink too unless it is
    selected: ``protect_sink=True`` keeps the first token at factor 1, the control that PASTA lacks.
    """

    papers = ("zhang2023",)
    alpha: float
    _: KW_ONLY
    keys: Any = None
    mode: str = "exclude"
    protect_sink: bool = False

    def __post_init__(self) -> None:
        """Check alpha, the mode and the selectors."""
        self._number("alpha", low=1e-30, hint="Use alpha=0.01 to turn to the keys, or MaskKeys to hide the others.")
        self._choice("mode", ("include", "exclude", "generation"))
        if self.mode == "generation" and self.keys not in (None, "generated"):
            raise EditError(f"{self._asked('keys')}: mode='generation' acts on all prompt keys. Leave keys out.")
        if self.mode != "generation" and self.keys is None:
            raise EditError(f"SteerKeys(mode={self.mode!r}): keys must be given: the tokens to turn to.")
        if self.mode == "generation":
            self._set("keys", "generated")
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Alpha 1."""
        return self.alpha == 1.0

    def change_attention(self, call: EditedCall) -> None:
        """Add log alpha to the logits of the prompt's keys that are not selected."""
        kept = call.tokens.choose(self.keys, lambda: self._asked("keys"), call.layer, call.head_count)
        # As the released code: only keys of the prompt are steered, generated ones keep their weight.
        others = call.tokens.prompt[:, None] & ~kept
        if self.protect_sink:
            # Damping the first token frees most of a late head's attention, which alone may explain what steering
            # does.
            others = others & ~call.tokens.named("first")[:, None]
        log = math.log(self.alpha)
        keys = call.along_keys(others, False) & call.heads[None, :, None]
        call.add_log_bias(keys, -log if self.mode == "include" else log)
