"""The demo: real models and one with a planted sink, measured, drawn, reported and told in words.

Everything it says is computed from the readings it writes. The planted model comes with the truth, so the demo also
checks itself: it says whether the instrument found what was planted, and found nothing in the shuffled twin.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinkscope import schema, zoo
from sinkscope.cli import demo_language
from sinkscope.cli.figures import draw_effects, draw_figure, draw_overview
from sinkscope.cli.options import ModelOptions, load, quiet_libraries
from sinkscope.edits import SetActivations
from sinkscope.engine.run import run
from sinkscope.engine.sweep import sweep
from sinkscope.errors import OutputError
from sinkscope.metrics import compare, massive_activations, massive_dims, sink_rate, value_drain
from sinkscope.models.sources import SOURCES
from sinkscope.probes import (
    AttentionMap,
    Entropy,
    KeyMass,
    MassiveActivations,
    MaxAttention,
    ResidualNorm,
    RoleShare,
    ValueNorm,
)
from sinkscope.prompts import Prompts
from sinkscope.report import available, find_sinks, findings, write_report
from sinkscope.report.text import percent
from sinkscope.tasks import corpora

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.report import Sinks
    from sinkscope.testing import PlantedTruth

PROBES = (
    KeyMass(), RoleShare(queries="all"), Entropy(), ValueNorm(), ResidualNorm(), MassiveActivations(),
    MaxAttention(keys="first", queries="all"),
)  # fmt: skip
RANKED = [MassiveActivations(top=20)]
"""Enough ranked entries to see the massive dimension at other tokens than the first."""

LANGUAGE_MODEL = "lm-python"
PLANTED_PROMPTS, PLANTED_LENGTH, CANDIDATES = 8, 24, 4


@dataclass(frozen=True)
class Check:
    """One thing that was planted: what was planted, what was found, and whether they agree."""

    what: str
    planted: str
    found: str
    agrees: bool


def main(output: Path) -> bool:
    """Run the demo, write everything into the folder ``output`` and say what was found.

    Returns:
        Whether the planted truth was found, and nothing in the shuffled twin.

    Raises:
        OutputError: the folder cannot be made or written.
        ModelError: the encoder's package is not installed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"demo --output {output}: the folder cannot be made: {error.strerror}.") from None
    schema.check_output(output / "minilm.nc", overwrite=True)
    quiet_libraries()
    source, page = SOURCES[demo_language.NAME], "minilm.html"
    if source.here():
        pretrained(output)
        page = f"{demo_language.NAME}.html"
    else:
        _say(
            f"* Left out: {source.description}.",
            f"It is not installed, so the demo begins with the encoder. Get it with: {source.install()}",
        )
    encoder(output)
    if LANGUAGE_MODEL in {entry.name for entry in zoo.entries()}:
        language_model(output)
    agreed = planted(output)
    print(f"\nFigures, readings and reports are in {output}. Open {output / page} in a browser.")
    return agreed


def pretrained(output: Path) -> xr.Dataset:
    """Measure the pretrained language model on the shipped texts: who is the sink, why, and what it is needed for."""
    texts, name = corpora.texts(), demo_language.NAME
    _title(f"A language model that people know: {SOURCES[name].description}, on {len(texts)} short texts")
    model = load(name, ModelOptions())
    prompts = Prompts.from_texts(texts, model)
    standard = [probe for probe in PROBES if not isinstance(probe, MassiveActivations)]
    ds = run(model, prompts, [*standard, *RANKED], batch_size=8)
    told, sinks = findings(ds)
    for finding in told:
        _say(f"* {finding.heading}.", finding.text)
    _write(ds, output, name, f"Attention sinks of {model.id}", sinks)
    draw_overview(ds, sinks, output / f"{name}-overview.png")
    for heading, text in demo_language.tell(model, prompts, texts, ds, output):
        _say(f"* {heading}.", text)
    return ds


def encoder(output: Path) -> xr.Dataset:
    """Measure the pretrained sentence encoder on the shipped texts; write reading, figures and report."""
    texts = corpora.sentences()
    _title(f"A real model: the sentence encoder all-MiniLM-L6-v2, on {len(texts)} short texts")
    model = load("minilm", ModelOptions())
    prompts = Prompts.from_texts(texts, model)
    ds = run(model, prompts, PROBES, batch_size=8)
    told, sinks = findings(ds)
    for finding in told:
        _say(f"* {finding.heading}.", finding.text)
    _write(ds, output, "minilm", "Attention sinks of all-MiniLM-L6-v2", sinks)
    draw_overview(ds, sinks, output / "minilm-overview.png")
    one = run(model, prompts.subset([0]), [strongest_head(ds)])
    draw_figure(one, "attention_map", output / "minilm-attention-map.png")
    carrier(model, prompts, ds, output)
    return ds


def language_model(output: Path) -> xr.Dataset:
    """Measure the small language model that ships with the package, on code it was not trained on."""
    texts = corpora.snippets()
    _title(f"A small language model trained by this project: zoo:{LANGUAGE_MODEL}, on {len(texts)} pieces of Python")
    model = load(f"zoo:{LANGUAGE_MODEL}", ModelOptions())
    ds = run(model, Prompts.from_texts(texts, model), PROBES, batch_size=8)
    told, sinks = findings(ds)
    for finding in told:
        _say(f"* {finding.heading}.", finding.text)
    _write(ds, output, LANGUAGE_MODEL, f"Attention sinks of zoo:{LANGUAGE_MODEL}", sinks)
    return ds


def carrier(model: Model, prompts: Prompts, ds: xr.Dataset, output: Path) -> xr.Dataset | None:
    """Ask by an edit which dimension carries the sink: zero each candidate at the first token before every layer.

    Candidates are the dimensions that stand out; controls are drawn at random from the others, 8 in all. None where no
    dimension stands out.
    """
    dims = [int(d) for d in massive_dims(ds, "relative")["dim"].values[:CANDIDATES]]
    if not dims:
        return None
    others = np.setdiff1d(np.arange(int(ds.attrs["d_model"])), dims)
    controls = sorted(
        int(d) for d in np.random.default_rng(0).choice(others, 2 * CANDIDATES - len(dims), replace=False)
    )
    sites = [site for site in ds["site"].values.tolist() if not site.endswith(".mid")][:-1]
    zeroed = {f"dim {d}": [SetActivations(site, dims=[d]) for site in sites] for d in [*dims, *controls]}
    swept = sweep(model, prompts, {"none": [], **zeroed}, [KeyMass(keys="first")], executor="serial", batch_size=8)
    schema.save(swept, output / "minilm-carrier.nc", overwrite=True)
    mass = swept["key_mass"].isel(key=0).mean(["layer", "head"])
    change = compare(mass, to="none")
    draw_effects(change, swept, [f"dim {d}" for d in controls], output / "minilm-carrier.png")
    before, after = float(mass.sel(edit="none").mean()), mass.mean("prompt")
    top = str(change["edit"][int(change["difference"].argmin("edit"))].item())
    low, high = (float(change[name].sel(edit=top)) for name in ("low", "high"))
    rest = after.sel(edit=[label for label in zeroed if label != top])
    carried = float(after.sel(edit=top)) < before / 2
    _say(
        f"* {top.replace('dim', 'Dimension')} carries the sink." if carried else "* No one dimension carries the sink.",
        f"Setting {top} to zero at the first token, before every layer, takes its attention from {percent(before)} to "
        f"{percent(float(after.sel(edit=top)))} (change {100 * low:.1f} to {100 * high:.1f} points, 95% interval over "
        f"{int(change['n'].sel(edit=top))} texts). Each of {rest.sizes['edit']} other dimensions leaves it between "
        f"{percent(float(rest.min()))} and {percent(float(rest.max()))}: "
        + (f"{', '.join(map(str, dims[1:]))}, which also stand out, and " if dims[1:] else "")
        + f"{', '.join(map(str, controls))}, drawn at random.",
    )
    return swept


def planted(output: Path) -> bool:
    """Measure the planted model and its twin, and compare with what was planted."""
    from sinkscope.testing import planted_sink

    _title("A model with a known answer: a sink planted by hand, and its shuffled twin")
    model, truth = planted_sink(seed=0)
    ds = run(model, _random_prompts(model), PROBES, batch_size=PLANTED_PROMPTS)
    twin_model, _ = planted_sink(seed=0, shuffled=True)
    twin = run(twin_model, _random_prompts(twin_model), PROBES, batch_size=PLANTED_PROMPTS)
    checks = [*check_planted(ds, truth), twin_check(twin)]
    width = max(len(check.what) for check in checks)
    for check in checks:
        print(f"  {'ok   ' if check.agrees else 'WRONG'} {check.what:<{width}}  planted: {check.planted}")
        print(f"        {'':<{width}}  found:   {check.found}")
    _write(ds, output, "planted", "A planted sink", find_sinks(ds))
    agreed = all(check.agrees for check in checks)
    verdict = "The planted sink was found, and none in its twin" if agreed else "NOT all that was planted was found"
    _say(f"* {verdict}.", "Each line above compares what was built into the weights with what the readings show.")
    return agreed


def check_planted(ds: xr.Dataset, truth: PlantedTruth) -> list[Check]:
    """Compare a reading of the planted model with the truth."""
    found_heads = sink_heads(ds)
    place = int(ds["key_mass"].mean(["prompt", "layer", "head"]).argmax("key"))
    dims = massive_dims(ds, "sun2024")
    found_dims = [int(d) for d in dims["dim"].values]
    value = float(abs(ds["top_value"]).max())
    kv_heads = sorted({(layer, int(ds["kv_of_head"].sel(head=head))) for layer, head in truth.heads})
    drain = [float(value_drain(ds).sel(layer=layer).isel(kv_head=kv)) for layer, kv in kv_heads]
    return [
        Check("heads with the sink", _pairs(truth.heads), _pairs(found_heads), found_heads == truth.heads),
        Check("token of the sink", f"position {truth.position}", f"position {place}", place == truth.position),
        Check("dimension that carries it", str(truth.dims), str(found_dims), found_dims == sorted(truth.dims)),
        Check("its largest magnitude", f"{truth.value:,.1f}", f"{value:,.1f}", abs(value / truth.value - 1) < 1e-4),
        Check(
            "values of the sink, against the median",
            "under 0.5 in these heads", f"at most {max(drain):.3f}", max(drain) < 0.5,
        ),
    ]  # fmt: skip


def twin_check(twin: xr.Dataset) -> Check:
    """Say whether the shuffled twin is free of what was planted."""
    heads, entries = sink_heads(twin), int(massive_activations(twin, "sun2024")["massive"].sum())
    found = f"{len(heads)} heads with a sink, {entries} massive entries"
    return Check("shuffled twin", "nothing", found, not heads and not entries)


def sink_heads(ds: xr.Dataset) -> list[tuple[int, int]]:
    """List the (layer, head) pairs whose first token is a sink in most prompts (Gu et al. 2025, epsilon 0.3)."""
    rate = sink_rate(ds, over="prompt").transpose("layer", "head")
    hits = (rate > 0.5).values.nonzero()
    layers, heads = rate["layer"].values, rate["head"].values
    return [(int(layers[i]), int(heads[j])) for i, j in zip(*hits, strict=True)]


def strongest_head(ds: xr.Dataset) -> AttentionMap:
    """Ask for the map of the head that gives the first token the most."""
    mass = ds["key_mass"].isel(key=0).mean("prompt")
    top = mass.where(mass == mass.max(), drop=True)
    return AttentionMap(layers=[int(top["layer"][0])], heads=[int(top["head"][0])])


def _write(ds: xr.Dataset, output: Path, name: str, title: str, sinks: Sinks | None) -> None:
    schema.save(ds, output / f"{name}.nc", overwrite=True)
    for kind in available(ds):
        draw_figure(ds, kind, output / f"{name}-{kind.replace('_', '-')}.png", sinks=sinks)
    write_report(ds, output / f"{name}.html", title=title, overwrite=True)


def _random_prompts(model: Model) -> Any:
    from sinkscope.testing import text_ids

    ids = text_ids(model.model, batch=PLANTED_PROMPTS, length=PLANTED_LENGTH, seed=1)
    return Prompts.from_ids(ids.tolist(), model)


def _pairs(heads: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def _say(heading: str, text: str) -> None:
    print(heading)
    print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ") + "\n")
