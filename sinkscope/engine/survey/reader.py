"""Reading one block of prompts: tokens, batches of like length, and what the probes give, counted into the state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sinkscope.arguments import check_fields
from sinkscope.engine.run import check_request, read_batch
from sinkscope.engine.survey.source import Item
from sinkscope.engine.survey.state import SurveyState
from sinkscope.errors import ProbeError, PromptError
from sinkscope.models.backends.base import AttentionSite, Tower
from sinkscope.probes.base import Probe
from sinkscope.prompts import Batch, Prompts
from sinkscope.prompts.text import encode_text
from sinkscope.roles import ATTENDED_ROLES, ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


@dataclass(frozen=True)
class SurveySettings:
    """How a survey goes over its prompts. Shards are joined only if all but ``every`` agree.

    Attributes:
        max_tokens: prompts are cut to this many tokens; None is the model's context length.
        batch_tokens: most tokens of one pass, padding included.
        block: prompts that are sorted by length together; shards and checkpoints are made of whole blocks.
        every: seconds between checkpoints.
        field: column of rows of named columns that holds the prompt; None looks for "text" and "input_ids".
    """

    max_tokens: int | None = None
    batch_tokens: int = 4096
    block: int = 256
    every: float = 60.0
    field: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, ProbeError)
        for name in ("max_tokens", "batch_tokens", "block"):
            value = getattr(self, name)
            if (value is not None or name != "max_tokens") and (type(value) is not int or value < 1):
                raise ProbeError(f"SurveySettings({name}={value!r}): use a whole number of at least 1.")
        if not self.every >= 0:
            raise ProbeError(f"SurveySettings(every={self.every!r}): use a number of seconds, 0 or more.")

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers."""
        return {
            "max_tokens": self.max_tokens, "batch_tokens": self.batch_tokens, "block": self.block, "field": self.field,
        }  # fmt: skip


class BlockReader:
    """Reads blocks of prompts into the state of a survey; what a run stores, it counts."""

    def __init__(
        self, model: Model, tower: Tower, probes: Sequence[Probe], settings: SurveySettings, state: SurveyState
    ) -> None:
        self.model, self.tower, self.probes, self.settings, self.state = model, tower, probes, settings, state
        self.paths: set[str] = set()
        self._roles: tuple[Batch, NDArray[np.bool_]] | None = None

    def read(self, block: Sequence[Item], first: int) -> None:
        """Read a block; ``first`` is the number of its first prompt in the corpus.

        Raises:
            PromptError: a prompt that cannot be tokenised, with its number in the corpus.
            ModelError, ProbeError: as :func:`sinkscope.run`.
        """
        ids, numbers = self._tokenised(block, first)
        self.state.counters["skipped"] += len(block) - len(ids)
        if not ids:
            return
        try:
            prompts = Prompts.from_ids(ids, self.model)
        except PromptError as error:
            raise PromptError(f"survey: in the block of prompts {first} to {first + len(block) - 1}: {error}") from None
        check_request(self.model, prompts, self.probes, self.tower, 1)
        self.state.key0 = self.state.key0 or prompts.key0
        for indices in batches_of(prompts.lengths, self.settings.batch_tokens):
            batch = prompts.batch(indices, self.model.device)
            self.paths |= read_batch(self.model, self.tower, batch, self.probes, self, None).paths
            if self.state.sinks is not None:
                self.state.sinks.close(prompts, numbers)
        self.state.counters["prompts"] += len(ids)
        self.state.counters["tokens"] += sum(prompts.lengths)
        self.state.counters["with_bos"] += sum(bool(row[0] == ROLE_INDEX["bos"]) for row in prompts.roles)

    def put(self, found: Mapping[str, torch.Tensor], batch: Batch, at: AttentionSite | int | None = None) -> None:
        """Count what probes read of one attention call, one residual site or the output."""
        roles = self._role_columns(batch)
        for name, tensor in found.items():
            self.state.tables[name].add(tensor, batch, roles, at)
            if name == "key_mass" and self.state.sinks is not None and isinstance(at, AttentionSite):
                self.state.sinks.add(tensor, batch, at)

    def _role_columns(self, batch: Batch) -> NDArray[np.bool_]:
        if self._roles is None or self._roles[0] is not batch:
            roles = batch.roles.cpu().numpy()
            self._roles = batch, roles[..., None] == np.arange(len(ATTENDED_ROLES))
        return self._roles[1]

    def _tokenised(self, block: Sequence[Item], first: int) -> tuple[list[list[int]], list[int]]:
        """Token ids of the prompts that are not empty, cut to the length allowed, and their numbers."""
        most = min(n for n in (self.settings.max_tokens, self.model.context_length, 1 << 30) if n is not None)
        found, numbers = [], []
        for number, item in enumerate(block, start=first):
            if not item or (isinstance(item, str) and not item.strip()):
                continue
            ids = self._encoded(item, number) if isinstance(item, str) else item
            self.state.counters["truncated"] += len(ids) > most
            found.append(ids[:most])
            numbers.append(number)
        return found, numbers

    def _encoded(self, text: str, number: int) -> list[int]:
        if self.model.tokenizer is None:
            raise PromptError(
                "survey: this model has no tokenizer. Pass one to load_model(..., tokenizer=), or give token ids."
            )
        return encode_text(text, number, self.model.tokenizer, "auto")


def batches_of(lengths: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Put prompts of like length together: a batch holds at most ``most`` tokens with its padding, or one prompt."""
    batch: list[int] = []
    for index in np.argsort(np.asarray(lengths), kind="stable").tolist():
        # In the order of length the newest is the longest.
        if batch and (len(batch) + 1) * lengths[index] > most:
            yield tuple(batch)
            batch = []
        batch.append(index)
    if batch:
        yield tuple(batch)
