"""The commands of surveys: ``survey`` reads a corpus, or a shard of it, ``merge`` joins shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from sinkscope import schema
from sinkscope.cli.options import FileOptions, ModelOptions, ReadingOptions, Texts, Whole, load, whole
from sinkscope.cli.readings import one_line


@Parameter(name="*", group=Group("Corpus", sort_key=0))
@dataclass(frozen=True)
class CorpusOptions:
    """How the corpus is read.

    Attributes:
        probe: What to read, such as entropy. Give it several times for several. Default: everything the findings need.
        reduce: What to keep: moments, histogram, roles, sink_tokens. Give it several times. Default: all.
        shard: Part k of n, such as 1/4, and nothing of the others. Join them with sinkscope merge.
        checkpoint: File that keeps what was found so far; the same command goes on from it. Default: the output's name
            with .state, removed when the survey is saved.
        max_tokens: Cut prompts to this many tokens. Default: the model's context length.
        batch_tokens: Most tokens of one pass, padding included.
        block: Prompts that are sorted by length together; shards are made of whole blocks.
        every: Seconds between checkpoints.
        field: Column of the rows that holds the prompt. Default: text, or input_ids.
    """

    probe: Texts | None = None
    reduce: Texts | None = None
    shard: str | None = None
    checkpoint: Path | None = None
    max_tokens: Annotated[int | None, Parameter(converter=whole)] = None
    batch_tokens: Whole = 4096
    block: Whole = 256
    every: float = 60.0
    field: str | None = None


def survey(
    model: str,
    corpus: Path,
    *,
    reading: CorpusOptions | None = None,
    loading: ModelOptions | None = None,
    file: FileOptions | None = None,
) -> None:
    """Measure a model on a corpus of any length and save statistics over its prompts.

    Args:
        model: A named model (see sinkscope models), a local folder, a GGUF file, ollama:NAME, or a hub id.
        corpus: File of prompts: .txt (one per line), .jsonl or .parquet.
    """
    reading, file = reading or CorpusOptions(), file or FileOptions()
    target = file.check()
    probes = ReadingOptions(reading.probe or []).probes()

    from sinkscope.engine.survey import SurveySettings
    from sinkscope.engine.survey import survey as read

    settings = SurveySettings(
        reading.max_tokens, reading.batch_tokens, reading.block, every=reading.every, field=reading.field
    )
    kept = reading.checkpoint or target.with_name(f"{target.name}.state")
    ds = read(
        load(model, loading or ModelOptions()), corpus, probes, reduce=reading.reduce, shard=reading.shard,
        checkpoint=kept, settings=settings,
    )  # fmt: skip
    file.save(ds)
    if reading.checkpoint is None:
        kept.unlink(missing_ok=True)
    print(one_line(ds))
    following = "merge" if reading.shard else "show"
    print(f"Saved {target}: statistics of {len(probes)} probes.\nNext: sinkscope {following} {target}")


def merge(
    readings: Annotated[list[Path], Parameter(negative=())],
    *,
    file: FileOptions | None = None,
) -> None:
    """Join the shards of one survey.

    Shards that overlap, or that differ in model, probes, versions, settings or source, are refused.

    Args:
        readings: Files written by sinkscope survey --shard, in any order.
    """
    file = file or FileOptions()
    target = file.check()
    found = [schema.open(path) for path in readings]

    from sinkscope.engine.survey import merge as join

    ds = join(found, [str(path) for path in readings])
    file.save(ds)
    print(one_line(ds))
    print(f"Saved {target}: {len(readings)} shards.\nNext: sinkscope show {target}")
