"""What mixes the tokens in a block: attention, a window of it, a recurrence, a convolution, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile

from sinkscope.models.backends.trial import ModuleCall, Seen

ATTENTION_FREE = (
    ("linear", r"delta|linear_?attn|linear_?attention|lightning|kda|retention"),
    ("ssm", r"mamba|ssm"),
    ("recurrent", r"recurrent|rglru"),
    ("conv", r"conv"),
)
"""Kinds of token mixers by the names of their classes and of the attributes that hold them, most telling first."""


def kind_of(block: ModuleCall, calls: Sequence[Seen], layer: int, depth: int) -> str:
    """Name the kind of one block from what ran in it; where that tells nothing, from the configuration's own list.

    Args:
        block: the run of the block in the trial.
        calls: the attention calls made in it.
        layer: its number.
        depth: how many blocks there are.
    """
    other = next((kind for kind, pattern in ATTENTION_FREE if _mixes(block, pattern)), None)
    if not calls:
        return other or "mlp"
    kind = "sliding" if all(call.window for call in calls) else "attention"
    # A convolution beside attention is a part of it (a short one on the keys); a recurrence is a second mixer.
    return f"{kind}+{other}" if other in ("linear", "ssm", "recurrent") else kind


def _mixes(block: ModuleCall, pattern: str) -> bool:
    found = re.compile(pattern, re.IGNORECASE)
    return any(found.search(name) for name in _names(block))


def _names(block: ModuleCall) -> Iterable[str]:
    """Names of the parts of a block, two levels deep, with their classes less what all of the model's share."""
    whole = type(block.module).__name__
    for child in block.inside:
        for entry in (child, *child.inside):
            name = type(entry.module).__name__
            yield f"{entry.path.rsplit('.', 1)[-1]} {name[len(_shared(whole, name)) :]}"


def _shared(first: str, second: str) -> str:
    """The words that two class names begin with: a model may be called KimiLinear or RecurrentGemma."""
    words = [re.findall(r"[A-Z]+[^A-Z]*|[^A-Z]+", name) for name in (first, second)]
    same = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*words, strict=False))]
    return "".join(same)
