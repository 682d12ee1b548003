"""Prompts of one length for any model: prose, code, random tokens, one token repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sinkscope.errors import PromptError
from sinkscope.tasks import corpora

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

TextKind = Literal["prose", "code", "random", "repeated"]


def token_rows(model: Model, kind: TextKind, n: int, tokens: int, seed: int) -> list[list[int]]:
    """Rows of ``tokens`` token ids, the model's own special tokens included, each from another text.

    Raises:
        PromptError: no tokenizer for a text, or too little text for ``n`` windows that do not overlap.
    """
    rng = np.random.default_rng(seed)
    before, after = specials(model)
    body = tokens - len(before) - len(after)
    if kind in ("prose", "code"):
        middles = _windows(getattr(corpora, kind)(), model.tokenizer, n, body, rng)
    else:
        special = set(getattr(model.tokenizer, "all_special_ids", ())) | {*before, *after}
        vocabulary = int(model.config.get_text_config().vocab_size)
        ordinary = [i for i in range(vocabulary) if i not in special]
        size = (n, body if kind == "random" else 1)
        middles = np.broadcast_to(rng.choice(ordinary, size=size), (n, body)).tolist()
    return [[*before, *middle, *after] for middle in middles]


def specials(model: Model) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text; without a tokenizer the beginning-of-sequence id alone."""
    if model.tokenizer is None:
        start = getattr(model.config, "bos_token_id", None)
        return ([] if start is None else [int(start)]), []
    bare = model.tokenizer("a b", add_special_tokens=False)["input_ids"]
    whole = model.tokenizer("a b")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[:at]), list(whole[at + len(bare) :])


def _windows(texts: list[str], tokenizer: Any, n: int, length: int, rng: np.random.Generator) -> list[list[int]]:
    """Windows that do not overlap, one text after the other in random order, then round again."""
    if tokenizer is None:
        raise PromptError("Study.texts: this model has no tokenizer. Use kind='random' or kind='repeated'.")
    found: list[list[list[int]]] = []
    for which in rng.permutation(len(texts)):
        if len(found) == n:
            break
        ids = tokenizer(texts[which], add_special_tokens=False, verbose=False)["input_ids"]
        starts = rng.permutation(len(ids) // length) * length
        if starts.size:
            found.append([ids[start : start + length] for start in starts])
    most = max(map(len, found), default=0)
    rounds = [windows[turn] for turn in range(most) for windows in found if turn < len(windows)]
    if len(rounds) < n:
        raise PromptError(f"Study.texts: {n} windows of {length} tokens were asked for, the text has {len(rounds)}.")
    return rounds[:n]
