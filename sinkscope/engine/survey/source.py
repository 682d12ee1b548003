"""Where the prompts of a survey come from: files that are read as they are needed, or any iterable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sinkscope.arguments import is_iterable
from sinkscope.errors import PromptError

FIELDS = ("text", "input_ids", "ids", "content")
"""Names under which a row of named columns holds its prompt, in the order in which they are looked for."""
SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
_HEAD = 1 << 20

Item = str | list[int]
"""One prompt: a text, or token ids."""


@dataclass(frozen=True)
class Corpus:
    """Prompts to be read once, in order.

    Attributes:
        source: a path, or what can be iterated.
        field: column of rows that are mappings; None looks for one of ``FIELDS``.
    """

    source: Any
    field: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, str | os.PathLike):
            path = Path(self.source)
            if not path.is_file():
                raise PromptError(
                    f"survey: {path}: no such file. Give a file ({', '.join(SUFFIXES)}), or any iterable of texts."
                )
            if path.suffix not in SUFFIXES:
                raise PromptError(
                    f"survey: {path}: prompts are read from {', '.join(SUFFIXES)} (a prompt per line or row)."
                )
        elif not is_iterable(self.source) or isinstance(self.source, Mapping):
            raise PromptError(
                f"survey: the source is a {type(self.source).__name__}. Give a file, or an iterable of texts, of lists "
                "of token ids, or of rows with a column 'text'."
            )

    @property
    def identity(self) -> str:
        """Say what this is, so that another corpus is told from it; of an iterable only its type is known."""
        if not isinstance(self.source, str | os.PathLike):
            return f"iterable {type(self.source).__name__}"
        path = Path(self.source)
        with path.open("rb") as file:
            return (
                f"{path.suffix[1:]} file of {path.stat().st_size} bytes, {xxhash.xxh3_64_hexdigest(file.read(_HEAD))}"
            )

    def __len__(self) -> int:
        """Return how many prompts there are, 0 where that is only known at the end."""
        try:
            return len(self.source) if not isinstance(self.source, str | os.PathLike) else 0
        except TypeError:
            return 0

    def items(self) -> Iterator[Item]:
        """Give the prompts in order; empty lines of a text file are prompts too, so that numbers stay those of lines.

        Raises:
            PromptError: a row that is neither text nor token ids, or a file that cannot be read.
        """
        for number, row in enumerate(self._rows()):
            yield _item(row, number, self.field)

    def _rows(self) -> Iterable[Any]:
        if not isinstance(self.source, str | os.PathLike):
            return self.source
        path = Path(self.source)
        return _parquet(path, self.field) if path.suffix == ".parquet" else _lines(path)


def blocks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Cut prompts into blocks of ``size``, the last one shorter."""
    while block := list(islice(items, size)):
        yield block


def digest(block: list[Item], number: int) -> int:
    """Return a number that stands for the content of one block; the sum over blocks stands for all of them."""
    found = xxhash.xxh3_128(str(number).encode())
    for item in block:
        content = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else np.asarray(item, "<i8").tobytes()
        found.update(len(content).to_bytes(8, "little") + content)
    return found.intdigest()


def _lines(path: Path) -> Iterator[Any]:
    plain = path.suffix == ".txt"
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if plain:
                    yield line.rstrip("\n")
                elif line.strip():
                    yield _parsed(line, path, number)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"survey: {path}: cannot be read ({error}). Was the copy cut short?") from None


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise PromptError(f"survey: {path}: line {number + 1} is no JSON ({error}). Write one object a line.") from None


def _parquet(path: Path, field: str | None) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise PromptError(f"survey: {path}: parquet needs pyarrow. Install it, or convert to .jsonl.") from None
    try:
        file = parquet.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in ((field,) if field else FIELDS)]
        for batch in file.iter_batches(batch_size=1024, columns=names or None):
            yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise PromptError(f"survey: {path}: cannot be read ({error}). Was the copy cut short?") from None


def _item(row: Any, number: int, field: str | None) -> Item:
    value = row
    if isinstance(row, Mapping):
        name = field or next((name for name in FIELDS if name in row), None)
        if name is None or name not in row:
            asked = f"the column {field!r}" if field else f"one of the columns {', '.join(FIELDS)}"
            raise PromptError(f"survey: prompt {number} has {sorted(map(str, row))}, not {asked}. Name it by field=.")
        value = row[name]
    if isinstance(value, str):
        return value
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in plain):
        return list(plain)
    raise PromptError(f"survey: prompt {number} is a {type(value).__name__}, neither a text nor a list of token ids.")
