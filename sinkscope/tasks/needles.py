"""Needle tests: some tokens hidden among others, and asked for at the end by the one that they began with.

The test of Wu et al. 2024 for models of any size: no instruction has to be understood, only copied. What has to be
written is known token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


@dataclass(frozen=True, eq=False)
class NeedleTests:
    """Prompts that end with the first token of a needle that stood before.

    Attributes:
        prompts: haystack with the needle in it, then its first token.
        spans: of each prompt where the rest of the needle stands: first position, and the one after its last.
        answers: of each prompt the ids of that rest, which the model has to write.
    """

    prompts: Prompts
    spans: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Give the number of tests."""
        return len(self.spans)

    def subset(self, indices: Sequence[int]) -> NeedleTests:
        """Return the tests at ``indices``."""
        chosen = self.prompts.subset(indices)
        return NeedleTests(chosen, tuple(self.spans[i] for i in indices), tuple(self.answers[i] for i in indices))

    def answered(self, model: Model) -> Prompts:
        """Return the prompts with the right answers behind them."""
        pairs = zip(self.prompts.ids, self.answers, strict=True)
        return Prompts.from_ids([[*ids.tolist(), *answer] for ids, answer in pairs], model)


def needle_tests(
    model: Model, n: int = 32, *, length: int = 96, needle: int = 6,
    haystacks: Sequence[Sequence[int]] = (), seed: int = 0,
) -> NeedleTests:  # fmt: skip
    """Make ``n`` needle tests, the needle at depths from the beginning of the haystack to its end.

    Args:
        model: a decoder.
        n: number of tests.
        length: tokens of each prompt, the beginning-of-sequence token and the cue included.
        needle: tokens that have to be written; one more stands before them and at the end of the prompt, as the cue.
        haystacks: token ids to hide the needle in, one list per test and long enough, such as of a text; left out,
            ordinary tokens drawn at random.
        seed: decides the draws.

    A needle's tokens are ordinary ones drawn at random, none of which stands elsewhere in its haystack.

    Raises:
        PromptError: lengths that leave no haystack, haystacks that are too few or too short, or too few tokens.
    """
    start = [] if (bos := getattr(model.config, "bos_token_id", None)) is None else [int(bos)]
    body = length - len(start) - needle - 2
    if min(n, needle) < 1 or body < 2:
        raise PromptError(
            f"needle_tests(n={n}, length={length}, needle={needle}): these leave {body} tokens of haystack. "
            "Give at least one test, one token to write, and two of haystack."
        )
    if haystacks and (len(haystacks) < n or min(map(len, haystacks)) < body):
        raise PromptError(f"needle_tests: {n} haystacks of {body} tokens are needed. Give more, or longer ones.")
    rng = np.random.default_rng(seed)
    special = {*start, *getattr(model.tokenizer, "all_special_ids", ()), model.config.get_text_config().pad_token_id}
    special |= {getattr(model.config, "eos_token_id", None)} if model.tokenizer is None else set()
    ordinary = np.asarray([i for i in range(int(model.config.get_text_config().vocab_size)) if i not in special])
    rows: list[list[int]] = []
    spans: list[tuple[int, int]] = []
    answers: list[tuple[int, ...]] = []
    for which in range(n):
        hay = list(haystacks[which][:body]) if haystacks else []
        free = ordinary[~np.isin(ordinary, hay)]
        if len(free) <= needle + 1:
            raise PromptError(f"needle_tests: {len(free)} tokens do not stand in the haystack. Give a shorter one.")
        hidden = rng.choice(free, needle + 1, replace=False).tolist()
        hay = hay or rng.choice(free[~np.isin(free, hidden)], body).tolist()
        depth = round((which + 0.5) / n * body)
        rows.append([*start, *hay[:depth], *hidden, *hay[depth:], hidden[0]])
        first = len(start) + depth + 1
        spans.append((first, first + needle))
        answers.append(tuple(hidden[1:]))
    return NeedleTests(Prompts.from_ids(rows, model), tuple(spans), tuple(answers))
