"""Questions as a model sees them: token ids of prompts and options, and a probe that reads how they are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sinkscope.errors import ProbeError, PromptError
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.probes.output import refuse_overflow
from sinkscope.prompts import Prompts
from sinkscope.prompts.text import encode_text
from sinkscope.prompts.vocabulary import Vocabulary
from sinkscope.schema import Variable
from sinkscope.tasks.base import Item

if TYPE_CHECKING:
    from sinkscope.models.backends.base import Tower
    from sinkscope.models.handle import Model


@dataclass(frozen=True)
class Answers(Probe, listed=False):
    """How the last position of each prompt answers: log probabilities of its options, greedy token, entropy.

    Makes ``log_probability_by_option`` (prompt, option), NaN beyond a prompt's options; ``greedy_token`` (prompt), the
    id with the largest logit; ``answer_entropy`` (prompt), Shannon entropy over the vocabulary. All come from the
    softmax over the whole vocabulary, in float32. The logits themselves are not kept.
    """

    options: tuple[tuple[int, ...], ...]
    variables: ClassVar[Mapping[str, Variable]] = {
        "log_probability_by_option": Variable(("prompt", "option"), "nat", "log probability of its first token"),
        "greedy_token": Variable(("prompt",), "token id", "id with the largest logit"),
        "answer_entropy": Variable(("prompt",), "nat", "entropy of the next token over the vocabulary"),
    }
    logits: ClassVar[str | None] = "all"  # a batch is padded on the right: its last column is not each prompt's end

    def check(self, tower: Tower) -> None:
        """Only a decoder continues a prompt."""
        if not tower.causal:
            raise ProbeError("Answers(): this model is an encoder and continues no prompt. Use a decoder.")

    def at_end(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Reduce the last real position of each prompt."""
        real = context.batch.real
        last = real.shape[1] - 1 - real.flip(-1).long().argmax(-1)
        rows = torch.arange(len(logits), device=logits.device)
        scores = logits[rows, last].float()
        refuse_overflow(scores, "Answers()")
        logs = scores.log_softmax(-1)
        width = max(len(ids) for ids in self.options)
        found = torch.full((len(logs), width), torch.nan, device=logs.device)
        for row, prompt in enumerate(context.batch.indices):
            ids = self.options[prompt]
            found[row, : len(ids)] = logs[row, list(ids)]
        entropy = -(logs.exp() * logs.clamp(min=-1e4)).sum(-1)
        return {"log_probability_by_option": found, "greedy_token": logs.argmax(-1), "answer_entropy": entropy}


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions tokenised for one model. Make them with :meth:`of`.

    Attributes:
        items: the questions.
        prompts: their prompts.
        options: id of the first token of each option, as it follows the prompt.
    """

    items: tuple[Item, ...]
    prompts: Prompts
    options: tuple[tuple[int, ...], ...]
    _vocabulary: Vocabulary = field(repr=False)

    @classmethod
    def of(cls, items: Sequence[Item], model: Model) -> Questions:
        """Tokenise questions.

        The token of an option is the first one that differs from the tokens of the prompt alone, where the tokenizer
        splits them at the same place, else the first token of the option by itself. One token is what the literature
        scores (Han et al. 2025 generate one), so options of a question must start differently.

        Raises:
            PromptError: no questions, a model without tokenizer, a prompt beyond the context, or two options of a
                question that start with the same token.
        """
        items = tuple(items)
        if not items:
            raise PromptError("Questions.of: no questions were given. Give at least one.")
        prompts = Prompts.from_texts([item.prompt for item in items], model)
        options = tuple(
            tuple(_first_token(item.prompt, option, ids, model.tokenizer) for option in item.options)
            for item, ids in zip(items, prompts.ids, strict=True)
        )
        for which, (item, ids) in enumerate(zip(items, options, strict=True)):
            if len(set(ids)) < len(ids):
                raise PromptError(
                    f"Questions.of: options {list(item.options)} of question {which} start with the same token in this "
                    "tokenizer, and one token is scored. Use letters, or options that start differently."
                )
        return cls(items, prompts, options, Vocabulary.of(model))

    @property
    def answers(self) -> np.ndarray:
        """Place of the right option of each question."""
        return np.array([item.answer for item in self.items])

    @property
    def probe(self) -> Answers:
        """The probe that reads how these questions are answered."""
        return Answers(self.options)

    def subset(self, indices: Sequence[int]) -> Questions:
        """Return the questions at ``indices``."""
        chosen = [int(i) for i in indices]
        items, options = tuple(self.items[i] for i in chosen), tuple(self.options[i] for i in chosen)
        return Questions(items, self.prompts.subset(chosen), options, self._vocabulary)

    def text_of(self, token: int) -> str:
        """The text that a token id stands for, blanks included."""
        return self._vocabulary.bytes_of(int(token)).decode("utf-8", "replace")

    def option_named(self, which: int, token: int) -> int | None:
        """Return which option of question ``which`` a generated token names, or None: an invalid answer.

        The token of an option names it; else the first option, in list order, that the token's text starts with the
        text of, upper and lower case and blanks at the ends ignored. That is the rule of the released ZeroTuning code
        (one new token, matched to labels in list order) made strict about where the label stands.
        """
        if token in self.options[which]:
            return self.options[which].index(token)
        said = self.text_of(token).strip().casefold()
        for place, option in enumerate(self.options[which]):
            label = self.text_of(option).strip().casefold()
            if label and said.startswith(label):
                return place
        return None

    def focus(self, model: Model) -> xr.DataArray:
        """Return the tokens of each question's focus: bool, dims (prompt, key), keys from the first token.

        Raises:
            PromptError: a question has no focus, or the tokenizer cannot say which characters a token covers.
        """
        rows = [_covered(item, which, model.tokenizer) for which, item in enumerate(self.items)]
        mask = np.zeros((len(rows), max(self.prompts.lengths)), dtype=bool)
        for row, found in zip(mask, rows, strict=True):
            row[: len(found)] = found
        return xr.DataArray(mask, dims=("prompt", "key"), coords={"prompt": np.arange(len(rows))}, name="focus")

    def random_token(self, seed: int = 0) -> xr.DataArray:
        """One random token of each prompt, never the first: bool, dims (prompt, key)."""
        rng = np.random.default_rng(seed)
        mask = np.zeros((len(self.items), max(self.prompts.lengths)), dtype=bool)
        for row, length in zip(mask, self.prompts.lengths, strict=True):
            row[int(rng.integers(1, length)) if length > 1 else 0] = True
        return xr.DataArray(mask, dims=("prompt", "key"), coords={"prompt": np.arange(len(mask))}, name="random_token")


def _first_token(prompt: str, option: str, ids: np.ndarray, tokenizer: Any) -> int:
    whole = encode_text(prompt + option, 0, tokenizer, "auto")
    if len(whole) > len(ids) and whole[: len(ids)] == ids.tolist():
        return int(whole[len(ids)])
    return int(encode_text(option, 0, tokenizer, False)[0])


def _covered(item: Item, which: int, tokenizer: Any) -> np.ndarray:
    if not item.focus:
        raise PromptError(f"focus: question {which} names none. Give its items a focus, a part of the prompt.")
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError("focus: this tokenizer does not say which characters a token covers. Use a fast tokenizer.")
    spans = tokenizer(item.prompt, add_special_tokens=True, return_offsets_mapping=True)["offset_mapping"]
    start = item.prompt.rindex(item.focus)
    end = start + len(item.focus)
    return np.array([low < end and high > start and high > low for low, high in spans])
