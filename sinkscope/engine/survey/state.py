"""The state of a survey: what was counted, of which prompts; written as a checkpoint, and joined with other shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from sinkscope.engine.survey.layout import SurveyLayout
from sinkscope.engine.survey.sink_tokens import SinkTokens
from sinkscope.engine.survey.tables import VariableTable
from sinkscope.errors import OutputError
from sinkscope.schema import Variable

FORMAT = 1
_HASH = hashlib.sha256().digest_size
_MODULUS = 1 << 128

COUNTERS = ("prompts", "tokens", "skipped", "truncated", "with_bos")


@dataclass
class SurveyState:
    """Everything that a survey has found so far; its size does not depend on the number of prompts."""

    identity: dict[str, Any]
    """What must be the same for two states to be joined: model, probes, versions, settings, source."""
    about: dict[str, Any]
    """What labels the result: attributes, layout, variables, reductions, size of the vocabulary."""
    runs: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """Blocks that are counted: first, step and number of each run of them."""
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    key0: str = ""
    """What the first block says of key 0."""
    digest: int = 0
    """Sum of the digests of the blocks that are counted."""
    seen: int = -1
    """Prompts of the source, known when it has been read to its end."""
    tables: dict[str, VariableTable] = field(default_factory=dict[str, VariableTable])
    sinks: SinkTokens | None = None

    def __post_init__(self) -> None:
        layout = SurveyLayout.from_json(self.about["layout"])
        for name, given in self.about["variables"].items():
            variable = Variable(**(given | {"dims": tuple(given["dims"])}))
            self.tables.setdefault(name, VariableTable(name, variable, layout, self.about["reduce"]))
        if self.about["vocabulary"] and self.sinks is None:
            self.sinks = SinkTokens(layout, self.about["vocabulary"])

    def count_block(self, content: int) -> None:
        """Note that one more block of this shard is counted; ``content`` is its digest."""
        start, step, count = self.runs[0]
        self.runs[0] = start, step, count + 1
        self.digest = (self.digest + content) % _MODULUS

    def missing(self) -> int:
        """Return how many blocks of the source are not counted; -1 where its length is not known yet."""
        if self.seen < 0:
            return -1
        return -(-self.seen // self.identity["settings"]["block"]) - sum(count for *_, count in self.runs)

    def join(self, other: SurveyState, names: tuple[str, str] = ("the first", "the second")) -> None:
        """Add what another shard of the same survey found.

        Raises:
            OutputError: it was made of another model, by other probes, versions or settings, or of prompts that are
                counted already; the message says which.
        """
        first, second = names
        for part, value in self.identity.items():
            if value != other.identity.get(part):
                raise OutputError(
                    f"merge: {first} and {second} differ in {part}: {_short(value)} and "
                    f"{_short(other.identity.get(part))}. Join shards of one survey."
                )
        shared = {i for run in self.runs for i in _blocks(run)} & {i for run in other.runs for i in _blocks(run)}
        if shared:
            size = self.identity["settings"]["block"]
            raise OutputError(
                f"merge: {first} and {second} overlap: {len(shared)} blocks are in both, the first from prompt "
                f"{min(shared) * size} on. Join shards k/n of one n, each once."
            )
        if -1 not in (self.seen, other.seen) and self.seen != other.seen:
            raise OutputError(
                f"merge: {first} was read from a source of {self.seen} prompts, {second} from one of {other.seen}. "
                "Join shards of one source."
            )
        if min(run[0] for run in other.runs) < min(run[0] for run in self.runs):
            self.key0 = other.key0
        self.runs = sorted([*self.runs, *other.runs])
        self.counters = {name: self.counters[name] + other.counters[name] for name in COUNTERS}
        self.digest = (self.digest + other.digest) % _MODULUS
        self.seen = max(self.seen, other.seen)
        for name, table in other.tables.items():
            self.tables[name].join(table)
        if self.sinks is not None and other.sinks is not None:
            self.sinks.join(other.sinks)

    def to_bytes(self) -> bytes:
        """Return the state as bytes: a hash, a line of JSON, and arrays as safetensors."""
        arrays: dict[str, NDArray[np.generic]] = {
            f"{name}/{part}": array for name, table in self.tables.items() for part, array in table.arrays().items()
        }
        if self.sinks is not None:
            arrays |= {f"sinks/{part}": array for part, array in self.sinks.arrays().items()}
        head = {
            "format": FORMAT, "identity": self.identity, "about": self.about, "runs": self.runs, "key0": self.key0,
            "counters": self.counters, "digest": hex(self.digest), "seen": self.seen,
            "sinks": None if self.sinks is None else self.sinks.about(),
        }  # fmt: skip
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        body = json.dumps(head).encode() + b"\n" + safetensors.numpy.save(whole)
        return hashlib.sha256(body).digest() + body


def from_bytes(data: bytes, place: str) -> SurveyState:
    """Read what ``to_bytes`` gave; ``place`` opens the message of an error.

    Raises:
        OutputError: the bytes are damaged, or were written by another version.
    """
    body = data[_HASH:]
    if hashlib.sha256(body).digest() != data[:_HASH]:
        raise OutputError(f"{place}: this is no state of a survey, or it is damaged. Delete it, and start anew.")
    line, _, tensors = body.partition(b"\n")
    head: dict[str, Any] = json.loads(line)
    if head["format"] != FORMAT:
        raise OutputError(f"{place}: written in format {head['format']}, this version reads {FORMAT}. Start anew.")
    state = SurveyState(
        head["identity"], head["about"], [(a, b, c) for a, b, c in head["runs"]], head["counters"], head["key0"],
        int(head["digest"], 16), head["seen"],
    )  # fmt: skip
    arrays = safetensors.numpy.load(tensors)
    for name, table in state.tables.items():
        table.restore(_within(arrays, name))
    if state.sinks is not None:
        state.sinks.restore(_within(arrays, "sinks"), head["sinks"])
    return state


def _within(arrays: Mapping[str, NDArray[np.generic]], name: str) -> dict[str, NDArray[np.generic]]:
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}


def _blocks(run: tuple[int, int, int]) -> range:
    start, step, count = run
    return range(start, start + step * count, step)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
