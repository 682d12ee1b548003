"""The headline findings: what the numbers say, in words, and honestly where they say nothing."""

from __future__ import annotations

import html
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from sinkscope.definitions import define
from sinkscope.errors import MetricError, SinkscopeWarning
from sinkscope.metrics.base import lengths, require
from sinkscope.metrics.bimodal import bimodality
from sinkscope.metrics.drain import value_drain
from sinkscope.metrics.entropy import row_entropy
from sinkscope.metrics.massive import massive_activations, massive_dims, massive_stages
from sinkscope.metrics.sinks import implicit_sink, sink_rate
from sinkscope.report.sinks import Sinks, find_sinks
from sinkscope.report.surveys import is_survey, survey_texts
from sinkscope.report.text import counted, number, percent
from sinkscope.schema import refuse_nothing


@dataclass(frozen=True)
class Finding:
    """One finding.

    ``state`` is ``found``, ``absent`` (measured, and not there) or ``missing`` (not measured; the text says what to
    add). ``used`` holds the attributes of the metrics behind it, for the table of definitions.
    """

    heading: str
    text: str
    state: str
    used: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        """Return the heading, and the text below it, wrapped."""
        return f"{self.heading}\n{textwrap.fill(self.text, 96, initial_indent='  ', subsequent_indent='  ')}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        faint = "" if self.state == "found" else "opacity:.65;"
        heading = f"<b>{html.escape(self.heading)}</b> <small>({html.escape(self.state)})</small>"
        return f"<div style='{faint}max-width:60em;margin:.4em 0'>{heading}<br>{html.escape(self.text)}</div>"


class Findings(NamedTuple):
    """What :func:`findings` returns: ``told, sinks = findings(readings)``; shown by itself it is read as text."""

    told: list[Finding]
    """The findings, in the order of the page."""
    sinks: Sinks | None
    """Which tokens are the sink; None where ``key_mass`` was not measured, or of a survey, which keeps no prompt."""

    def __repr__(self) -> str:
        """Return the findings as text, one paragraph each."""
        return "\n\n".join(map(str, self.told))

    def _repr_html_(self) -> str:
        return "".join(finding._repr_html_() for finding in self.told)


def findings(ds: xr.Dataset) -> Findings:
    """Say what a reading shows: where the sink is, how its values are drained, which dimension carries it, and more.

    Args:
        ds: a reading without a dimension in front of ``prompt``.

    Returns:
        The findings in the order of the page, and the sinks (None: ``key_mass`` was not measured, or this is a survey,
        which keeps no prompt).
    """
    require(ds, "findings")
    refuse_nothing(ds, "findings")
    if is_survey(ds):
        return Findings([Finding(*texts) for texts in survey_texts(ds)], None)
    sinks = find_sinks(ds) if "key_mass" in ds else None
    steps: list[tuple[str, Callable[[], Finding]]] = [
        ("Where attention goes", lambda: _where(ds, sinks)),
        ("Values of the sink", lambda: _drain(ds, sinks)),
        ("What carries it", lambda: _carrier(ds, sinks)),
        ("Entropy", lambda: _entropy(ds)),
    ]
    if "row_sum" in ds:
        steps.append(("Attention that goes to no token", lambda: _implicit(ds)))
    if "max_attention" in ds:
        steps.append(("Kinds of heads", lambda: _split(ds)))
    done = []
    for heading, step in steps:
        try:
            done.append(step())
        except MetricError as error:
            done.append(Finding(heading, _missing(error), "missing"))
    return Findings(done, sinks)


def _missing(error: MetricError) -> str:
    """Say what to measure; which variables a reading holds instead is no help to who reads its findings."""
    return f"Not measured. {error.advice}" if error.advice else f"Not measured: {error}"


def _where(ds: xr.Dataset, sinks: Sinks | None) -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SinkscopeWarning)  # said in words here
        rate = sink_rate(ds)
    if not int(rate.attrs["n"]):
        return Finding(
            "Nothing was measured",
            "key_mass holds no number: no head was read at any token. Measure again, or select less narrowly.",
            "missing", (rate.attrs,),
        )  # fmt: skip
    if sinks is not None and sinks.short == ds.sizes["prompt"]:
        return Finding(
            "The prompts are too short to tell a sink",
            f"With {counted(int(_longest(ds)), 'token')} or fewer, evenly spread attention gives the first token more "
            f"than {number(float(rate.attrs['epsilon']))}, as a sink would. Use prompts of 30 tokens and more.",
            "missing", (rate.attrs,),
        )  # fmt: skip
    if sinks is None or not sinks.found:
        top = sinks.kinds[0] if sinks and sinks.kinds else None
        best = (
            ""
            if top is None
            else (
                f" Most goes to {top.label}: {percent(top.mass)} of the attention on average, where "
                f"evenly spread attention would give it {percent(top.chance)}."
            )
        )
        return Finding(
            "No sink found",
            f"None of {counted(int(rate.attrs['n']), 'head reading')} (prompt x layer x head) puts more than "
            f"{number(float(rate.attrs['epsilon']))} of its attention on one token.{best}",
            "absent", (rate.attrs,),
        )  # fmt: skip
    top = sinks.kinds[0]
    text = (
        f"{_capital(top.label)} is the sink ({top.roles}). It gets {percent(top.mass)} of the attention on average, "
        f"where evenly spread attention would give it {percent(top.chance)}; in {percent(top.heads)} of "
        f"{counted(sinks.n, 'head reading')} (prompt x layer x head) it gets more than {number(sinks.threshold)}. "
        f"The sink rate of position 0 is {percent(float(rate))}. {_certainty(top.p_value, ds.sizes['prompt'])}"
    )
    if sinks.short:
        text += f" {counted(sinks.short, 'prompt')} of too few tokens to tell are left out."
    if not top.p_value <= 0.05 and ds.sizes["prompt"] >= 6:
        return Finding("No token gets more than even attention would give it", text, "absent", (rate.attrs,))
    others = [kind for kind in sinks.kinds[1:4] if kind.heads >= 0.01]
    if others:
        text += " Other sinks: " + ", ".join(f"{kind.label} ({percent(kind.heads)} of heads)" for kind in others) + "."
    return Finding(f"The sink is {top.label}", text, "found", (rate.attrs,))


def _longest(ds: xr.Dataset) -> int:
    return int(lengths(ds, "findings").max())


def _certainty(p: float, prompts: int) -> str:
    """Say how sure it is that a sink gets more than even attention gives it, or why that can't be said."""
    if prompts < 6:
        return f"{counted(prompts, 'prompt')} can't show that this is more than chance; 6 or more can."
    return f"Over the {prompts} prompts that is more than even attention gives it, p = {number(p)} (sign flips)."


def _drain(ds: xr.Dataset, sinks: Sinks | None) -> Finding:
    chosen: int | xr.DataArray = sinks.mask if sinks is not None and sinks.found else 0
    name = sinks.label if sinks is not None and sinks.found else "the first token"
    ratio = value_drain(ds, chosen)
    if not np.isfinite(ratio.values).any():
        raise MetricError("value_drain: no prompt has both the sink and other tokens. Use longer prompts.")
    by_layer = ratio.mean("kv_head")
    mean, lowest = float(ratio.mean()), by_layer.idxmin("layer").item()
    text = (
        f"The value vectors of {name} are {number(mean)} times as long as the median of the other tokens (mean over "
        f"layers and key-value heads); the smallest ratio is {number(float(by_layer.min()))}, in layer {int(lowest)}."
    )
    drained = percent(float((ratio < 0.5).sum() / ratio.notnull().sum()))
    if mean < 0.5:
        extra = f" In {drained} of the key-value heads they are less than half as long."
        return Finding(
            f"Its values are drained to {percent(mean)} of the others' length", text + extra, "found", (ratio.attrs,)
        )
    if mean < 0.9:
        heading = f"Its values are shorter ({percent(mean)} of the others' length), not drained"
    else:
        heading = "Its values are not drained" if mean <= 1.1 else "Its values are longer than the others'"
    return Finding(heading, f"{text} {drained} of the key-value heads have less than half.", "absent", (ratio.attrs,))


def _carrier(ds: xr.Dataset, sinks: Sinks | None) -> Finding:
    absolute = massive_activations(ds, "sun2024")
    at_sink = sinks is not None and sinks.found
    stages = massive_stages(ds, sinks.mask if sinks is not None and at_sink else None)
    ranked = massive_dims(ds)
    if at_sink and stages.sizes["stage"] == 0:
        at_sink, stages = False, massive_stages(ds)
    entries = int(absolute["massive"].sum())
    bound = f"magnitude above {number(absolute.attrs['absolute'])}, {number(absolute.attrs['ratio'])} times the median"
    finds = "1 entry" if entries == 1 else f"{entries:,} entries"
    rule = f"The absolute rule of Sun et al. ({bound}) finds {finds}."
    used = (dict(ranked.attrs), dict(absolute.attrs))
    if stages.sizes["stage"] == 0:
        top = float(abs(ds["top_value"]).max())
        text = (
            f"No residual dimension stands out in most prompts. The largest entry of the residual stream has magnitude "
            f"{number(top)}. {rule}"
        )
        return Finding("No massive activation found", text, "absent", used)
    first = stages.isel(stage=0)
    dim, at = int(first["dim"]), int(first["at"])
    place = sinks.label if sinks is not None and at_sink else f"position {at}, which is no sink"
    text = (
        f"Residual dimension {dim} is massive at {place} in {_span(first)}: its magnitude is "
        f"{number(float(first['magnitude']))} there, {number(float(first['ratio']))} times the median entry. "
        f"{_earlier(stages, dim)}{_more_dims(stages)}{rule} "
        "That a dimension stands at the sink does not yet show that it makes the sink: an edit does (SetActivations)."
    )
    where = "at the sink" if at_sink else f"at position {at}"
    return Finding(f"Dimension {dim} stands out {where}", text, "found", used)


def _span(stage: xr.Dataset) -> str:
    return f"blocks {int(stage['first'])} to {int(stage['last'])}"


def _earlier(stages: xr.Dataset, dim: int) -> str:
    """The other plateaus of the same dimension."""
    mine = stages.isel(stage=np.flatnonzero(stages["dim"].values == dim)[1:])
    told = [f"{number(float(mine['magnitude'][i]))} in {_span(mine.isel(stage=i))}" for i in range(mine.sizes["stage"])]
    return f"It also stands at {' and '.join(told)}. " if told else ""


def _more_dims(stages: xr.Dataset) -> str:
    rest = list(dict.fromkeys(stages["dim"].values.tolist()))[1:]
    if not rest:
        return ""
    if len(rest) > 4:
        return f"Then come {', '.join(map(str, rest[:4]))} and {len(rest) - 4} more. "
    return f"{'The next is' if len(rest) == 1 else 'Then come'} {', '.join(map(str, rest))}. "


def _p(result: xr.Dataset) -> str:
    p = float(result["dip_p"])
    return "p < 0.001" if p < 0.001 else f"p = {number(p)}"


def _entropy(ds: xr.Dataset) -> Finding:
    share = row_entropy(ds)
    by_layer = share.mean("head")
    if not bool(by_layer.notnull().any()):
        raise MetricError("entropy holds no number. Measure again, or select less narrowly.")
    low, high = by_layer.idxmin("layer").item(), by_layer.idxmax("layer").item()
    text = (
        f"The mean attention row has {percent(float(share.mean()))} of the entropy of an even one: least in layer "
        f"{int(low)} ({percent(float(by_layer.min()))}), most in layer {int(high)} ({percent(float(by_layer.max()))}). "
        f"Low entropy alone does not tell a sink from a head that copies; see the head grid."
    )
    return Finding(f"Rows use {percent(float(share.mean()))} of the entropy they could", text, "found", (share.attrs,))


def _implicit(ds: xr.Dataset) -> Finding:
    missing = implicit_sink(ds)
    mean = float(missing.mean())
    if mean < 1e-4:
        return Finding("No implicit sink", "Every attention row sums to 1 up to rounding.", "absent", (missing.attrs,))
    top = missing.where(missing == missing.max(), drop=True)
    text = (
        f"{percent(mean)} of the attention goes to no token at all (a learned sink logit or a normaliser that does not "
        f"sum to 1); most in layer {int(top['layer'].values[0])}, head {int(top['head'].values[0])}: "
        f"{percent(float(missing.max()))}."
    )
    return Finding(f"{percent(mean)} of the attention goes to no token", text, "found", (missing.attrs,))


def _split(ds: xr.Dataset) -> Finding:
    values = ds["max_attention"].mean("query")
    result = bimodality(values)
    n = int(result["n"])
    if not n:
        return Finding(
            "Kinds of heads",
            "max_attention holds no number: no prompt has such keys and queries. Name keys that the prompts hold.",
            "missing", (result.attrs,),
        )  # fmt: skip
    if not bool(result["bimodal"]):
        # A dip that is beyond chance is no valley yet: with thousands of readings the smallest unevenness is.
        apart = float(result["ashman_d"])
        uneven = n >= define("bimodality", "combined").default("small") and float(result["dip_p"]) < 0.05
        shape = (
            f"is not of one smooth hump over {n:,} head readings (dip test {_p(result)}), but has no two humps with a "
            f"valley between them (Ashman's D {number(apart)}; two are apart from 2 on)"
            if uneven
            else f"has one hump over {n:,} head readings (dip test {_p(result)})"
        )
        text = (
            f"The largest attention weight on the chosen keys, mean over queries, {shape}: no split into two classes "
            "of heads is justified."
        )
        return Finding("Heads do not fall into two classes", text, "absent", (result.attrs,))
    above = percent(float(result["high_weight"]))
    text = (
        f"The largest attention weight on the chosen keys, mean over queries, has two humps, at "
        f"{number(float(result['low_mean']))} and {number(float(result['high_mean']))} ({above} of {n:,} head "
        f"readings), with a valley at {number(float(result['valley']))} (dip test {_p(result)})."
    )
    return Finding("Heads fall into two classes", text, "found", (result.attrs,))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
