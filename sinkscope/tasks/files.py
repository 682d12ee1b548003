"""Rows of a task from Hugging Face ``datasets`` or from a local file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sinkscope.errors import PromptError
from sinkscope.tasks.base import Item, Task

Source = str | os.PathLike[str] | tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""A file that is split here, or a pair of files: calibration, test."""
Make = Callable[[Mapping[str, Any]], Item | None]


class Split(NamedTuple):
    """One split of a dataset on the hub."""

    path: str
    config: str | None
    part: str
    revision: str | None


def from_hub(split: Split, make: Make, count: int, seed: int) -> list[Item]:
    """Draw ``count`` questions from a split of a dataset on the hub, or in the cache of ``datasets``.

    Raises:
        PromptError: ``datasets`` is not installed, the dataset cannot be had, or a row is not as expected.
    """
    try:
        import datasets
    except ImportError:
        raise PromptError(
            f"load: {split.path} is read with Hugging Face datasets, which is not installed. Install it with: "
            "pip install 'sinkscope[harness]', or give a local file with source=."
        ) from None
    try:
        rows = datasets.load_dataset(split.path, split.config, split=split.part, revision=split.revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PromptError(
            f"load: {split.path} ({split.part}) cannot be had from the hub: {reason} Check the network, or "
            "give a file in the same format with source=."
        ) from None
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    return _items((rows[i] for i in order), make, f"{split.path} ({split.part})", count)


def from_files(name: str, source: Source, make: Make, calibration: int, test: int, seed: int) -> Task:
    """Make a task of one file, which is split, or of a pair of files.

    Raises:
        PromptError: a file cannot be read, a row is not as expected, or the parts share a prompt.
    """
    if isinstance(source, tuple):
        parts = []
        for path, count in zip(source, (calibration, test), strict=True):
            rows = read_rows(path)
            order = np.random.default_rng(seed).permutation(len(rows)).tolist()
            parts.append(tuple(_items((rows[i] for i in order), make, str(path), count)))
        return Task(name, parts[0], parts[1], " and ".join(str(path) for path in source))
    items = _items(read_rows(source), make, str(source))
    return Task.split(name, items, calibration=calibration, test=test, seed=seed, source=str(source))


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines or parquet file, told apart by the ending.

    Raises:
        PromptError: no such file, another ending, or content that is not of that format.
    """
    file = Path(path)
    if not file.is_file():
        raise PromptError(f"{file}: no such file. Give a .jsonl or .parquet file with one question per row.")
    if file.suffix not in (".jsonl", ".json", ".parquet"):
        raise PromptError(f"{file}: tasks are read from .jsonl (one JSON object per line) and .parquet files.")
    try:
        if file.suffix == ".parquet":
            import pandas as pd

            rows = pd.read_parquet(file).to_dict("records")
        else:
            lines = file.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
    except ImportError as error:
        raise PromptError(f"{file}: parquet needs pyarrow ({error}). Install it, or convert to .jsonl.") from None
    except (OSError, ValueError) as error:
        raise PromptError(f"{file}: cannot be read as {file.suffix[1:]} ({error}). Was the copy cut short?") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise PromptError(f"{file}: holds no rows of named columns. Write one JSON object per line.")
    return [{str(name): value for name, value in row.items()} for row in rows]


def plain_item(row: Mapping[str, Any]) -> Item:
    """A question of a row with the columns ``prompt``, ``options``, ``answer`` and perhaps ``focus``.

    The answer is the right option, written as it stands among the options, or its place.
    """
    options, answer = tuple(map(str, row["options"])), row["answer"]
    place = options.index(answer) if isinstance(answer, str) and answer in options else int(answer)
    return Item(str(row["prompt"]), options, place, str(row.get("focus") or ""))


def _items(rows: Iterable[Mapping[str, Any]], make: Make, where: str, count: int | None = None) -> list[Item]:
    """Questions of the rows that have a label, each prompt once, at most ``count``."""
    found: dict[str, Item] = {}
    for place, row in enumerate(rows):
        try:
            item = make(row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise PromptError(
                f"{where}: row {place} has the columns {sorted(row)} and does not fit this task ({error!r}). Use the "
                "benchmark's own columns."
            ) from None
        if item is not None:
            found.setdefault(item.prompt, item)
        if count is not None and len(found) == count:
            break
    if not found:
        raise PromptError(f"{where}: no row has a label. Use a split with answers.")
    return list(found.values())
