"""``survey``: one pass over a corpus that keeps statistics and no prompt."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import xarray as xr
from tqdm.auto import tqdm

from sinkscope import files
from sinkscope.arguments import is_iterable, shown
from sinkscope.engine.reading import provenance
from sinkscope.engine.results import probe_content
from sinkscope.engine.run import as_tuple, find_tower
from sinkscope.engine.survey import source as corpora
from sinkscope.engine.survey.dataset import finished
from sinkscope.engine.survey.layout import SurveyLayout
from sinkscope.engine.survey.reader import BlockReader, SurveySettings
from sinkscope.engine.survey.state import SurveyState, from_bytes
from sinkscope.errors import OutputError, ProbeError, PromptError, did_you_mean
from sinkscope.files import as_path
from sinkscope.probes.base import Probe

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

REDUCTIONS = ("moments", "histogram", "roles", "sink_tokens")
"""What can be kept: moments by position (always), histograms by position, moments by role, sinks by head and token."""
_VERSIONS = ("torch", "transformers", "numpy")


class Shard(NamedTuple):
    """One part of ``of``, numbered from 1: the blocks ``number - 1``, ``number - 1 + of`` and so on."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Read ``"k/n"``; None is the whole.

        Raises:
            PromptError: not of that form, or k is not from 1 to n.
        """
        number, _, count = ("1/1" if text is None else text if isinstance(text, str) else "").partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise PromptError(f"survey(shard={text!r}): write k/n with k from 1 to n, such as '1/4'.")
        return cls(int(number), int(count))


def survey(  # noqa: PLR0913 - one call is the whole interface, as with run
    model: Model,
    source: Any,
    probes: Sequence[Probe] = (),
    *,
    reduce: Sequence[str] | None = None,
    shard: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    settings: SurveySettings | None = None,
) -> xr.Dataset:
    """Read what ``probes`` ask on every prompt of a corpus in one pass, and return statistics over the prompts.

    Memory does not grow with the number of prompts: of each variable are kept count, mean, standard deviation, smallest
    and largest value per layer, head or site, by position bucket (0, 1, 2-3, 4-7, ...) and by role of the token, and a
    histogram; of key mass also which heads have a sink and which tokens are sinks, with examples. Sums are exact, so
    that shards can be joined in any order: four shards give what one pass gives, bit for bit on one kind of machine.

    Args:
        model: the model.
        source: a file (``.txt``: a prompt per line; ``.jsonl``; ``.parquet``), a ``datasets`` dataset, or any iterable
            of texts, lists of token ids, or rows with a column ``text`` or ``input_ids``. It is read once, in order.
        probes: what to read. Maps and logits, which have no mean over prompts, are refused.
        reduce: what to keep, of ``"moments"``, ``"histogram"``, ``"roles"``, ``"sink_tokens"``; None is all there is.
        shard: ``"k/n"``: read part k (from 1) of n, block by block, and leave the others to other processes. Join
            them with :func:`merge`.
        checkpoint: file in which what was found is kept every ``settings.every`` seconds. A survey that was killed goes
            on from it, and gives the same numbers bit for bit.
        settings: lengths of prompts, batches and blocks.

    Returns:
        A reading without a dimension ``prompt``: ``key_mass_mean`` (layer, head, bucket), ``key_mass_std``,
        ``key_mass_by_role_mean`` (layer, head, role), ``key_mass_histogram``, ``sink_rate`` and so on. Empty prompts
        are left out, long ones cut; the attribute ``survey`` says how many.

    Raises:
        PromptError: a source or shard that cannot be read, or no prompts.
        ProbeError: a variable that cannot be reduced, or an unknown reduction.
        OutputError: the checkpoint belongs to another survey, is damaged, or cannot be written.
    """
    probes, settings, part = as_tuple(probes, "probes"), settings or SurveySettings(), Shard.parse(shard)
    if not isinstance(cast("object", settings), SurveySettings):
        raise ProbeError(f"survey(settings={shown(settings)}): give sinkscope.SurveySettings(...), or leave it out.")
    tower = find_tower(model, None)
    corpus = corpora.Corpus(source, settings.field)
    state = _new_state(model, probes, _reductions(reduce, probes), corpus, settings)
    state.runs = [(part.number - 1, part.of, 0)]
    target = None if checkpoint is None else as_path(checkpoint, OutputError)
    if target is not None and target.is_dir():
        raise OutputError(f"survey(checkpoint={str(target)!r}): this is a folder. Name a file in it.")
    if target is not None:
        state = _resumed(state, target)
    if state.seen < 0:
        _read_all(BlockReader(model, tower, probes, settings, state), corpus, part, target)
    return finished(state)


def _read_all(reader: BlockReader, corpus: corpora.Corpus, part: Shard, target: Path | None) -> None:
    """Go over the corpus from where the state stands to its end."""
    state, settings = reader.state, reader.settings
    done, repeated, seen, saved = state.runs[0][2], 0, 0, time.monotonic()
    bar = tqdm(total=len(corpus) or None, desc="survey", unit="prompt", disable=None, leave=False)
    with bar, torch.no_grad(), reader.model.evaluating():
        for number, block in enumerate(corpora.blocks(corpus.items(), settings.block)):
            seen += len(block)
            bar.update(len(block))
            place, other = divmod(number - (part.number - 1), part.of)
            if other:
                continue
            content = corpora.digest(block, number)
            if place < done:
                repeated = (repeated + content) % (1 << 128)
                if place == done - 1 and repeated != state.digest:
                    raise OutputError(
                        f"survey(checkpoint={str(target)!r}): the first {seen} prompts are not those that were "
                        "counted. Give the same source in the same order, or another checkpoint."
                    )
                continue
            reader.read(block, seen - len(block))
            state.count_block(content)
            state.about["attrs"]["path"] = ",".join(
                sorted({*state.about["attrs"]["path"].split(","), *reader.paths} - {""})
            )
            if target is not None and time.monotonic() - saved >= settings.every:
                files.write(target, state.to_bytes())
                saved = time.monotonic()
    if seen == 0:
        raise PromptError("survey: the source holds no prompts. Give at least one.")
    state.seen = seen
    if target is not None:
        files.write(target, state.to_bytes())


def _resumed(state: SurveyState, target: Path) -> SurveyState:
    if not target.exists():
        files.write(target, state.to_bytes())  # that it cannot be written shall be known now
        return state
    found = from_bytes(target.read_bytes(), f"survey(checkpoint={str(target)!r})")
    for name, value in state.identity.items():
        if found.identity.get(name) != value:
            raise OutputError(
                f"survey(checkpoint={str(target)!r}): it belongs to another survey: {name} is "
                f"{str(found.identity.get(name))[:80]}, now {str(value)[:80]}. Name another file, or delete this one."
            )
    if found.runs[0][:2] != state.runs[0][:2]:
        first, count, _ = found.runs[0]
        raise OutputError(
            f"survey(checkpoint={str(target)!r}): it belongs to shard {first + 1}/{count}. Give each shard its own "
            "file."
        )
    return found


def _reductions(reduce: Sequence[str] | None, probes: Sequence[Probe]) -> list[str]:
    if strange := [probe for probe in probes if not isinstance(probe, Probe)]:
        raise ProbeError(f"survey: {shown(strange[0])} is no probe. Probes are values such as sinkscope.KeyMass().")
    makes = {name for probe in probes for name in probe.variables}
    if reduce is None:
        return [name for name in REDUCTIONS if name != "sink_tokens" or "key_mass" in makes]
    wanted = [reduce] if isinstance(reduce, str) else list(reduce) if is_iterable(reduce) else [reduce]
    for name in wanted:
        if not isinstance(cast("object", name), str) or name not in REDUCTIONS:
            raise ProbeError(
                f"survey(reduce={name!r}): there are {', '.join(REDUCTIONS)}.{did_you_mean(str(name), REDUCTIONS)}"
            )
    if "sink_tokens" in wanted and "key_mass" not in makes:
        raise ProbeError("survey(reduce='sink_tokens'): sinks are found in key mass. Add KeyMass() to the probes.")
    return [name for name in REDUCTIONS if name in {*wanted, "moments"}]


def _new_state(
    model: Model, probes: tuple[Probe, ...], reduce: list[str], corpus: corpora.Corpus, settings: SurveySettings
) -> SurveyState:
    if not probes:
        raise ProbeError("survey: no probes. Name what to read, such as [sinkscope.KeyMass(), sinkscope.Entropy()].")
    variables = {name: variable for probe in probes for name, variable in probe.variables.items()}
    for name, variable in variables.items():
        if {"query", "key"} <= set(variable.dims) or {"vocab", "position"} & set(variable.dims):
            raise ProbeError(
                f"survey: {name} {variable.dims} has no statistics over prompts of different lengths and words. "
                "Read it by sinkscope.run on a few prompts."
            )
    tower = find_tower(model, None)
    attrs = provenance(model, tower, None, probes, "[]", set())
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 0) or 0)
    identity = {
        "model": model.fingerprint, "dtype": attrs["dtype"], "backend": attrs["backend"], "tower": tower.name,
        "probes": [probe_content(probe) for probe in probes], "reduce": reduce, "settings": settings.identity(),
        "source": corpus.identity,
        "versions": {"sinkscope": attrs["sinkscope_version"]} | {name: version(name) for name in _VERSIONS},
    }  # fmt: skip
    about = {
        "attrs": attrs, "layout": SurveyLayout.of(tower).to_json(), "reduce": reduce,
        "variables": {name: asdict(variable) for name, variable in variables.items()},
        "vocabulary": vocabulary if "sink_tokens" in reduce else 0,
    }  # fmt: skip
    return SurveyState(identity, about)
