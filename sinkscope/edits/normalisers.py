"""Edits of the softmax itself: a key that is only a logit, one with a value, or another normaliser.

They say what the weights of a call are, so they hold wherever they stand in the list of edits.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch

from sinkscope.attention.primitives import AmplifiedLogits
from sinkscope.edits.base import AttentionEdit
from sinkscope.edits.call import EditedCall
from sinkscope.edits.rows import KERNELS, ROWS, normaliser
from sinkscope.edits.values import Numbers
from sinkscope.errors import EditError
from sinkscope.models.backends.base import Tower


@dataclass(frozen=True, repr=False)
class NullKey(AttentionEdit):
    """Add one key that has only a ``logit``: rows sum to less than 1, and what is missing goes nowhere.

    ``NullKey(0.0)`` is softmax-off-by-one; a learned sink logit (GPT-OSS) is the same with a number per head.
    """

    papers = ("gu2025",)
    logit: float

    def __post_init__(self) -> None:
        """Check the logit and the selectors."""
        self._number("logit")
        super().__post_init__()
        self._refuse_queries("the normaliser is changed for every query. Leave queries out")

    def change_attention(self, call: EditedCall) -> None:
        """Add one more term to the denominator."""
        call.add_null_key(self.logit)


@dataclass(frozen=True, repr=False)
class KeyValueBias(AttentionEdit):
    """Add one explicit key and value that every query sees (Sun et al. 2024; Gu et al. 2025).

    ``key`` and ``value`` are arrays (dim), (head, dim) or (layer, head, dim), in the space of rotated keys: no position
    is applied to them. With a value of zeros it is a key bias.
    """

    key: Any
    _: KW_ONLY
    value: Any = field()

    def __post_init__(self) -> None:
        """Check the arrays and the selectors."""
        for name in ("key", "value"):
            array = Numbers.of(getattr(self, name), f"KeyValueBias({name}=...)")
            if not 1 <= len(array.shape) <= 3:
                raise EditError(
                    f"KeyValueBias({name}=...): its shape is {array.shape}. Give (dim), (head, dim) or "
                    "(layer, head, dim)."
                )
            self._set(name, array)
        super().__post_init__()
        self._refuse_queries("every query sees the key. Leave queries out")

    def check(self, tower: Tower) -> None:
        """Refuse arrays whose heads or dimensions do not fit."""
        super().check(tower)
        for site in tower.attention:
            if site.layer in self.layers_in(tower):
                for name in ("key", "value"):
                    self._at(name, site.layer, site.heads, site.head_dim, tower.depth)

    def _at(self, name: str, layer: int, heads: int, dim: int, layers: int | None = None) -> torch.Tensor:
        array = torch.as_tensor(getattr(self, name).array())
        shape = tuple(array.shape)
        if shape[-1:] != (dim,) or shape[-2:-1] not in ((), (heads,)) or (layers and shape[:-2] not in ((), (layers,))):
            raise EditError(
                f"KeyValueBias({name}=...): its shape is {shape}; layer {layer} needs ({dim}), ({heads}, {dim}) or "
                f"({layers} layers, {heads}, {dim})."
            )
        array = array[layer] if array.ndim == 3 else array
        return array.expand(heads, dim)

    def change_attention(self, call: EditedCall) -> None:
        """Add one more key and value."""
        own, device = call.call, call.call.query.device
        key = self._at("key", call.layer, call.head_count, own.query.shape[-1]).to(device)
        value = self._at("value", call.layer, call.head_count, own.value.shape[-1]).to(device)
        call.add_key(key, value)


@dataclass(frozen=True, repr=False)
class SwapNormaliser(AttentionEdit):
    """Replace the softmax. Weights a model was trained with rarely suit another one: this asks what the softmax does.

    Each key by itself: ``"sigmoid"`` (of each logit), ``"relu"`` (over the number of visible keys). Over a sum:
    ``"softmax1"`` (adds 1 to the denominator), ``"sigmoid_normalised"``, ``"elu_normalised"`` (ELU + 1),
    ``"softplus"``, ``"softpick"``, ``"identity"`` (logits over their sum, or over 1 where that is larger). Softmax
    changed: ``"clipped"`` (zeta, gamma), ``"affine"`` (alpha, its mean; rows sum to the mean), ``"temperature"`` (tau),
    ``"selective"`` (alpha: logits times 1 + alpha ln n for a query that sees n keys). Kernels of queries and keys:
    ``"elu_kernel"``, ``"mlp_kernel"`` (seed of a random two-layer ReLU network), ``"lucid"`` (softmax times the inverse
    of the keys' own similarity). ``parameters`` are those in brackets; None takes the defaults, which are this
    package's own where the papers learn them. Learned sinks and null keys play no part but in ``"softmax1"``.

    Sources: Gu et al. 2025; Guo et al. 2024; arXiv 2504.20966 (softpick), 2602.23057 (affine); Bondarenko et al. 2023
    (clipped); Zhang et al. 2024 (selective). LUCID as it is known to us: no text of it was at hand.
    """

    papers = ("gu2025", "softpick", "affine")
    kind: str
    _: KW_ONLY
    parameters: Any = None

    def __post_init__(self) -> None:
        """Check the kind, its parameters and the selectors."""
        self._choice("kind", ("sigmoid", "relu", "softmax1", *ROWS, *KERNELS))
        needed = (ROWS | KERNELS)[self.kind][1] if self.kind in ROWS | KERNELS else ()
        if self.parameters is not None:
            given = Numbers.of(self.parameters, self._asked("parameters")).array().astype(float).ravel().tolist()
            if len(given) != len(needed):
                raise EditError(
                    f"{self._asked('parameters')}: {self.kind!r} takes {len(needed)} numbers, such as {list(needed)}."
                )
            self._set("parameters", tuple(round(number, 6) for number in given))
        super().__post_init__()
        self._refuse_queries("the normaliser is changed for every query. Leave queries out")

    def change_attention(self, call: EditedCall) -> None:
        """Return the heads another normaliser."""
        defaults = (ROWS | KERNELS)[self.kind][1] if self.kind in ROWS | KERNELS else ()
        values = defaults if self.parameters is None else tuple(self.parameters)
        call.normalise(normaliser(self.kind, call.call, values))


@dataclass(frozen=True, repr=False)
class AmplifyLogits(AttentionEdit):
    """Add ``alpha`` times its own magnitude to each logit of the selected keys (PAINT, arXiv 2501.12206).

    ``s + alpha |s|`` moves negative logits towards 0 and positive ones up: no scaling. The paper does it in the last
    row (``queries="last"``) of the layers from 2 on, with alpha .7 on local and .3 on summary tokens of the image
    (``sk.metrics.paint_tokens``). Several of these edits act one after the other; normaliser, learned sinks and null
    keys come after them.
    """

    papers = ("arif2025",)
    alpha: float
    _: KW_ONLY
    keys: Any = "image"

    def __post_init__(self) -> None:
        """Check alpha and the selectors."""
        self._number("alpha")
        super().__post_init__()

    @property
    def identity(self) -> bool:
        """Alpha 0."""
        return self.alpha == 0.0

    def change_attention(self, call: EditedCall) -> None:
        """Amplify before the softmax."""
        call.written.biases.append(
            AmplifiedLogits(keys=call.keys(), alpha=self.alpha, queries=call.queries(), tally=call.tally)
        )
