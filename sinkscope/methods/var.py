"""VAR: give the attention that visual sinks take to the other patches, in heads that look at the image.

Kang et al. 2025 (arXiv 2503.03321). The sink dimensions are found on the calibration prompts, ``rho`` is chosen there
too, and the test prompts are used once. The paper chooses rho by benchmark, which its reviewers criticise; here the
choice never sees the test. ``rule="non_sink"`` is the paper's rule, ``rule="sink"`` that of the released code, where
``rho`` bounds the sink share from above and ``p`` is the part a sink keeps. Both skip the last layer, as the paper
says; the released code does not (``skip_last=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.edits.redistribute import Redistribute
from sinkscope.engine.run import find_tower, run
from sinkscope.errors import EditError, MetricError
from sinkscope.methods.base import MethodResult
from sinkscope.methods.parts import run_in_parts
from sinkscope.methods.residual import residual_stream
from sinkscope.metrics.residual import phi_threshold
from sinkscope.probes.attention import AttentionMap
from sinkscope.probes.residual import MassiveActivations, ResidualNorm, SinkDims
from sinkscope.registry import method
from sinkscope.tasks.examples import Examples, answer_score

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

RELATIVE_TAU = 0.3125
"""tau over the square root of the width: the paper's 20 at width 4096."""
KNOWN_DIMS: dict[str, tuple[int, ...]] = {
    "LLaMA-2-7B": (1415, 2533), "LLaMA-2-13B": (2100, 4743), "Qwen2-VL-7B": (458, 2570), "InternVL2-8B": (3584,),
}  # fmt: skip
"""Sink dimensions that were published, by language backbone; others have to be found."""


@dataclass(frozen=True)
class VarSettings:
    """What VAR fixes beforehand.

    Attributes:
        rhos: values of ``rho`` to choose from.
        p: part of the sinks' weight that is moved (``"non_sink"``), or that a sink keeps (``"sink"``).
        rule: ``"non_sink"`` (the paper) or ``"sink"`` (the released code).
        tau: phi of a sink; None takes 0.3125 sqrt(width), the paper's 20 at width 4096, in narrow models more. Where
            that lies among the ordinary text tokens of the calibration prompts, :func:`var` takes the middle of the gap
            between these and first tokens instead (``metrics.phi_gap``), and refuses where there is none.
        dims: sink dimensions; None finds them on the calibration prompts.
        min_image_mass: least attention on the image of a row that is changed.
        start_layer: first layer that is changed (no sink has formed before).
        skip_last: leave the last layer alone.
    """

    rhos: Sequence[float] = (0.5, 0.8, 0.9)
    p: float = 0.6
    rule: str = "non_sink"
    tau: float | None = None
    dims: Sequence[int] | None = None
    min_image_mass: float = 0.2
    start_layer: int = 2
    skip_last: bool = True


@dataclass(frozen=True, eq=False)
class VarResult(MethodResult):
    """What :func:`var` found.

    Attributes:
        edit: the edit with the chosen ``rho``, to be passed to ``run`` or ``generate``.
        dims: sink dimensions.
        calibration: scores (setting, prompt) on the calibration prompts; the setting ``none`` is the model as it is.
        test: difference of the edited from the plain model on the test prompts, with interval and p-value, as from
            ``metrics.compare``; one variable set for each score.
        scores: scores (setting, prompt) on the test prompts, settings ``none`` and ``var``.
        settings: what was fixed beforehand.
        notes: in words, where ``tau`` is from, and how often the edit acted.
    """

    reference: ClassVar[tuple[str, ...]] = ("kang2025",)

    edit: Redistribute
    dims: tuple[int, ...]
    calibration: xr.Dataset
    test: dict[str, xr.Dataset]
    scores: xr.Dataset
    settings: VarSettings
    notes: str = field(default="")

    def table(self) -> pd.DataFrame:
        """Return the differences to the plain model on the test, one row per score, with interval, p-value and n."""
        import pandas as pd

        rows = {name: {c: found[c].item() for c in found.data_vars} for name, found in self.test.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what each setting does to the log probability of the right answer on the calibration prompts."""
        from sinkscope import plot

        logs = self.calibration["log_probability"]
        found = metrics.compare(logs.rename(setting="edit"), to="none")
        effect = found["difference"].assign_attrs(long_name="log probability of the answer, change", units="nat")
        return plot.effect_bars(effect, interval=(found["low"], found["high"]), title="VAR on calibration", ax=ax)


@method()
def var(
    model: Model,
    calibration: Examples,
    test: Examples,
    settings: VarSettings | None = None,
) -> VarResult:
    """Run the whole procedure: dimensions and ``rho`` from ``calibration``, one comparison on ``test``.

    ``rho`` is the one with the best mean log probability of the answers; the first of equals.

    Raises:
        EditError: no ``rhos``.
        MetricError: no sink dimension is found, or no threshold on phi tells sinks from ordinary tokens.
    """
    chosen = settings or VarSettings()
    if not chosen.rhos:
        raise EditError("VarSettings(rhos=[]): no value to choose from. Give at least one, such as [0.5].")
    dims = tuple(chosen.dims) if chosen.dims is not None else sink_dims(model, calibration.prompts)
    bound, source = tau_of(model, chosen), "as asked"
    if chosen.tau is None:
        bound, source = choose_tau(run(model, calibration.prompts, [SinkDims(dims)]), bound)
    with_tau = replace(chosen, tau=bound)
    edits = {f"rho={rho:g}": redistribution(model, rho, dims, with_tau) for rho in chosen.rhos}
    tried = {"none": answer_score(model, calibration)}
    tried |= {name: answer_score(model, calibration, [edit]) for name, edit in edits.items()}
    means = [float(tried[name]["log_probability"].mean()) for name in edits]
    best = edits[list(edits)[int(np.argmax(means))]]
    plain, edited = answer_score(model, test), answer_score(model, test, [best])
    compared = {name: metrics.compare(edited[name], to=plain[name]) for name in ("log_probability", "correct")}
    notes = "; ".join(filter(None, [f"tau {bound:.3g}, {source}", str(edited.attrs.get("edit_notes", ""))]))
    return VarResult(best, dims, _stacked(tried), compared, _stacked({"none": plain, "var": edited}), chosen, notes)


def sink_dims(model: Model, prompts: Prompts, definition: str = "width_relative", top: int = 32) -> tuple[int, ...]:
    """Find the dimensions that phi looks at, at the first token of ``prompts`` (20 or more are advised).

    Raises:
        MetricError: none is found.
    """
    width = find_tower(model, None).d_model
    reading = run(model, prompts, [MassiveActivations(top=min(top, width)), ResidualNorm()])
    found = metrics.discover_sink_dims(reading, definition=definition)["dim"].values.tolist()
    if not found:
        raise MetricError(
            f"sink_dims: no dimension of {model.id} passes {definition!r} at the first token of these prompts. "
            "This model may have no such sink; name dims= yourself, or look at metrics.massive_dims."
        )
    return tuple(int(dim) for dim in found)


def sink_dims_or_largest(model: Model, prompts: Prompts) -> tuple[tuple[int, ...], bool]:
    """Return the sink dimensions of a model and True, else the largest dimension at the first token and False.

    The second is for figures of models without a sink: the largest dimension of the middle block's input, first prompt.
    """
    try:
        return sink_dims(model, prompts), True
    except MetricError:
        tower = find_tower(model, None)
        middle = f"{(tower.depth + 1) // 2 - 1}.post"
        return (int(np.abs(residual_stream(model, prompts, 0)[middle][0]).argmax()),), False


def redistribution(model: Model, rho: float, dims: Sequence[int], settings: VarSettings | None = None) -> Redistribute:
    """Return the edit of VAR for this model."""
    chosen = settings or VarSettings()
    return Redistribute(
        chosen.p, rho=rho, min_image_mass=chosen.min_image_mass, tau=tau_of(model, chosen), dims=tuple(dims),
        rule=chosen.rule, skip_last=chosen.skip_last, start_layer=chosen.start_layer,
    )  # fmt: skip


def tau_of(model: Model, settings: VarSettings) -> float:
    """Threshold on phi: the one given, or the one relative to the width."""
    if settings.tau is not None:
        return float(settings.tau)
    return phi_threshold(RELATIVE_TAU, find_tower(model, None).d_model)


def choose_tau(reading: xr.Dataset, bound: float) -> tuple[float, str]:
    """Return the threshold on phi to use, and where it is from: ``bound`` if it is above the ordinary text tokens.

    Args:
        reading: ``phi`` of the calibration prompts.
        bound: the threshold relative to the width.

    Raises:
        MetricError: as ``metrics.phi_gap``.
    """
    gap = metrics.phi_gap(reading)
    if float(gap.attrs["ordinary"]) < bound:
        return bound, "relative to the width"
    edges = f"{gap.attrs['ordinary']:.3g} of other and {gap.attrs['first']:.3g} of first tokens"
    return float(gap), f"half way between {edges}, as {bound:.3g} relative to the width is among the former"


def image_heads(
    model: Model, prompts: Prompts, rho: float, dims: Sequence[int], settings: VarSettings | None = None
) -> xr.Dataset:
    """Rows and heads that VAR would change: ``image_mass``, ``non_sink_share``, ``selected`` (prompt layer head query).

    Layers before ``start_layer`` and a skipped last layer are left out. Maps are held for a few prompts at a time.
    """
    chosen = settings or VarSettings()
    tower = find_tower(model, None)
    layers = redistribution(model, rho, dims, chosen).layers_in(tower)
    heads = range(max(site.heads for site in tower.attention))

    def chosen_rows(reading: xr.Dataset) -> xr.Dataset:
        sinks = metrics.phi_sinks(reading, tau=tau_of(model, chosen), roles="image")
        at = metrics.at_block_inputs(sinks, list(layers))
        definition = "paper" if chosen.rule == "non_sink" else "released_code"
        return metrics.image_centric_heads(reading, definition, sinks=at, min_image_mass=chosen.min_image_mass, rho=rho)

    probes = [AttentionMap(layers=layers, heads=heads), SinkDims(tuple(dims))]
    fill = {"image_mass": np.nan, "non_sink_share": np.nan, "selected": False}
    return run_in_parts(model, prompts, probes, chosen_rows, maps=len(layers) * len(heads), fill=fill)


def _stacked(scores: dict[str, xr.Dataset]) -> xr.Dataset:
    parts = [one.assign_coords(setting=name) for name, one in scores.items()]
    return xr.concat(parts, dim="setting", combine_attrs="drop")
