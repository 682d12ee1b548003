"""Named definitions: what a number means, in which units, with which thresholds, and after which paper.

Two papers may give one name two meanings. So every metric takes ``definition=NAME``, every result carries the name, and
this module is the list of them. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.references import REFERENCES


@dataclass(frozen=True)
class Definition:
    """One named definition of one metric.

    ``reference`` is a key of ``sinkscope.references.REFERENCES``, or empty where the definition is this package's own.
    """

    metric: str
    name: str
    meaning: str
    units: str
    defaults: tuple[tuple[str, float], ...] = ()
    reference: str = ""

    def default(self, parameter: str) -> float:
        """Give the default of a parameter.

        Raises:
            KeyError: the definition has no parameter of that name.
        """
        return dict(self.defaults)[parameter]


_DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "sink_rate", "gu2025",
        "share of (prompt, layer, head) whose key mass at the position is above epsilon (strictly)",
        "share of heads", (("epsilon", 0.3),), "gu2025",
    ),
    Definition("sink_tokens", "gu2025", "key mass above epsilon (strictly)", "1", (("threshold", 0.3),), "gu2025"),
    Definition(
        "sink_tokens", "act_relative",
        "key mass above threshold / N, N the prompt's length; the constant 5 was recalled, not read in the paper",
        "1", (("threshold", 5.0),), "yu2024",
    ),
    Definition("sink_tokens", "act_absolute", "key mass above an absolute threshold", "1", (("threshold", 0.1),),
               "yu2024"),
    Definition(
        "massive_activations", "sun2024",
        "magnitude above an absolute bound and at least ratio times the median magnitude of its prompt and site",
        "1", (("absolute", 100.0), ("ratio", 1000.0)), "sun2024",
    ),
    Definition(
        "massive_activations", "relative",
        "magnitude over the median at least factor times what the largest of as many normal numbers would show, in a "
        "dimension that does so in at least a share recurrence of the prompts at that site",
        "1", (("factor", 4.0), ("recurrence", 0.5)),
    ),
    Definition(
        "sink_dims", "kang2025",
        "median over prompts of |x_d| / RMS at the sink position at least tau in half of the sites of the middle 80 %",
        "share of sites", (("tau", 20.0), ("share", 0.5)), "kang2025",
    ),
    Definition(
        "sink_dims", "width_relative",
        "as kang2025 with tau a share of its upper bound sqrt(d_model), 20 / sqrt(4096) at every width, and at least "
        "twice what normal entries would show",
        "share of sites", (("tau", 0.3125), ("share", 0.5)), "kang2025",
    ),
    Definition("phi_sinks", "kang2025", "phi at least tau", "1", (("tau", 20.0),), "kang2025"),
    Definition(
        "phi_sinks", "width_relative", "phi at least tau sqrt(d_model), and twice what normal entries would show", "1",
        (("tau", 0.3125),), "kang2025",
    ),
    Definition(
        "value_drain", "guo2024", "l2 norm of the value vector of the sink over the median of the other tokens",
        "ratio", (), "guo2024",
    ),
    Definition("entropy_summary", "row", "-sum a ln a of the attention row", "nat"),
    Definition("entropy_summary", "without_sink", "entropy of the row renormalised without the sink's key", "nat"),
    Definition("row_entropy", "guo2024", "entropy of the row over ln of the keys it can see; 0 with one key", "1", (),
               "guo2024"),
    Definition("implicit_sink", "row_deficit", "1 - row sum: attention that goes to no key", "attention weight"),
    Definition(
        "bimodality", "combined",
        "interior valley of a two-component Gaussian mixture, and dip test (BIC gain for few values), and Ashman's D",
        "1", (("alpha", 0.05), ("bic_gain", 10.0), ("ashman_d", 2.0), ("small", 30.0)), "kan2025",
    ),
    Definition(
        "vision_heads", "kan2025", "heads whose maximum visual attention is at or above the valley of its distribution",
        "1", (), "kan2025",
    ),
    Definition(
        "non_vision_entropy", "kan2025", "entropy of the mean attention row over the keys that are not visual",
        "nat", (("min_mass", 1e-6),), "kan2025",
    ),
    Definition(
        "image_centric_heads", "paper", "visual mass at least min_image_mass and its non-sink share at least rho", "1",
        (("min_image_mass", 0.2), ("rho", 0.5)), "kang2025",
    ),
    Definition(
        "image_centric_heads", "released_code",
        "visual mass at least min_image_mass and its sink share at most rho; none where no visual token is a sink", "1",
        (("min_image_mass", 0.2), ("rho", 0.5)), "kang2025",
    ),
    Definition("background_overlap", "kang2025", "share of the visual sinks that lie on background", "share of tokens",
               (), "kang2025"),
    Definition(
        "modality_dominance", "mdi", "attention per text token over attention per visual token", "ratio", (),
        "text_dominance2025",
    ),
    Definition(
        "modality_dominance", "aei", "share of attention on a modality over its share of the tokens", "ratio", (),
        "text_dominance2025",
    ),
    Definition(
        "secondary_sinks", "wong2025", "|cos| with the primary sink's state above 0.9, classed by lifetime in layers",
        "layers", (("cosine", 0.9),), "wong2025",
    ),
    Definition(
        "secondary_sinks", "relative",
        "as wong2025, secondary when the lifetime is at least max(2, L/10) and at most 0.7 of the primary's",
        "layers", (("cosine", 0.9),), "wong2025",
    ),
    Definition("compare", "paired", "mean paired difference, bootstrap interval, test, false-discovery control", ""),
    Definition("rank_correlation", "spearman", "Spearman's rank correlation", "1"),
    Definition("rank_correlation", "kendall", "Kendall's tau", "1"),
    Definition("key_mass", "gu2025", "mean attention a key gets from the queries that can see it", "attention weight",
               (), "gu2025"),
    Definition("phi", "kang2025", "largest sink-dimension entry over the root mean square", "1", (), "kang2025"),
    Definition("contribution", "kang2025", "norm of weight x value x W_O", "activation", (), "kang2025"),
    Definition("max_attention", "kan2025", "largest weight on the named keys", "attention weight", (), "kan2025"),
)  # fmt: skip

DEFINITIONS: dict[tuple[str, str], Definition] = {(d.metric, d.name): d for d in _DEFINITIONS}
"""Every definition, by (metric, name)."""

USED_BY: dict[str, tuple[str, ...]] = {
    "KeyMass": ("gu2025",),
    "RoleShare": (),
    "Entropy": ("guo2024",),
    "MaxAttention": ("kan2025",),
    "RowSum": (),
    "LogSumExp": (),
    "AttentionMap": (),
    "TokenLoss": (),
    "Logits": (),
    "ValueNorm": ("guo2024",),
    "KeyNorm": ("gu2025",),
    "Contribution": ("kang2025",),
    "ResidualNorm": ("guo2024",),
    "MassiveActivations": ("sun2024",),
    "SinkDims": ("kang2025",),
    "ScaleKeys": ("han2025",),
    "MaskKeys": ("kang2025",),
    "DropKeys": ("kang2025",),
    "ZeroValues": ("guo2024",),
    "ShiftLogits": ("han2025",),
    "NullKey": ("gu2025",),
    "Redistribute": ("kang2025",),
    "CalibrateSinks": ("yu2024",),
    "SteerKeys": ("zhang2023",),
    "AblateHeads": ("guo2024",),
    "GateHeads": ("he2025",),
    "SetActivations": ("sun2024",),
    "SwapNormaliser": ("gu2025",),
}
"""Papers behind each probe and edit, by class name."""


def define(metric: str, name: str) -> Definition:
    """Give the definition ``name`` of ``metric``.

    Raises:
        MetricError: the metric has no definition of that name.
    """
    found = DEFINITIONS.get((metric, name))
    if found is None:
        known = [n for m, n in DEFINITIONS if m == metric]
        raise MetricError(f"{metric}: no definition {name!r}. Its definitions are {known}.")
    return found


def bibtex(key: str) -> str:
    """Give the BibTeX entry of one paper by its key, such as ``"gu2025"``.

    Raises:
        MetricError: no paper of that key is known.
    """
    if key not in REFERENCES:
        raise MetricError(f"bibtex: no reference {key!r}. The keys are {sorted(REFERENCES)}.")
    return REFERENCES[key].bibtex()


def cite(ds: xr.Dataset | xr.DataArray) -> str:
    """Give the BibTeX of everything a reading or a result used: its definitions, probes and edits, and sinkscope.

    ``ds`` may be a reading, or what a metric returned. Entries are in a fixed order, each once.

    Raises:
        MetricError: ``ds`` is neither a Dataset nor a DataArray.
    """
    if not isinstance(ds, xr.Dataset | xr.DataArray):
        raise MetricError(
            f"cite: expected a reading or a metric's result, got {type(ds).__name__}. Pass what sinkscope.run returns."
        )
    names = set(_names(_attributes(ds)))
    keys = {key for name in names for key in USED_BY.get(name, ())} | (names & set(REFERENCES))
    keys |= {definition.reference for definition in DEFINITIONS.values() if definition.name in names}
    version = str(ds.attrs.get("sinkscope_version", ""))
    return "\n\n".join([_software(version), *(REFERENCES[key].bibtex() for key in REFERENCES if key in keys)]) + "\n"


def _attributes(ds: xr.Dataset | xr.DataArray) -> Iterator[object]:
    arrays: Iterable[xr.DataArray] = ds.data_vars.values() if isinstance(ds, xr.Dataset) else (ds,)
    for holder in (ds, *arrays):
        for name in ("definitions", "definition", "reference", "probes", "edits"):
            if name in holder.attrs:
                yield holder.attrs[name]
    if "edit_spec" in ds.coords:
        yield from (str(text) for text in ds["edit_spec"].values.ravel())


def _names(values: Iterable[object]) -> Iterator[str]:
    """Walk JSON of any shape and give every string in it, so no serialisation of probes and edits is assumed."""
    for value in values:
        if isinstance(value, str):
            parsed = _parse(value)
            if parsed is None:
                yield value
            else:
                yield from _names([parsed])
        elif isinstance(value, dict):
            yield from _names([*value.keys(), *value.values()])
        elif isinstance(value, list | tuple):
            yield from _names(value)


def _parse(text: str) -> dict[str, object] | list[object] | None:
    if text[:1] not in "[{":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _software(version: str) -> str:
    lines = [
        "@software{sinkscope,",
        "  title = {sinkscope: measure, test and explain attention sinks in transformers},",
    ]
    lines += ["  author = {{The sinkscope developers}},"]
    lines += [f"  version = {{{version}}},"] if version else []
    return "\n".join([*lines, "}"])
