"""``sweep``: many lists of edits on the same prompts, one dataset with an ``edit`` dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinkscope.edits.base import Edit
from sinkscope.engine import results as disk
from sinkscope.engine.run import as_tuple, check_request, find_tower, inner_module
from sinkscope.engine.sweep import executors
from sinkscope.engine.sweep.dataset import assemble
from sinkscope.engine.sweep.passes import Sweep
from sinkscope.engine.sweep.variants import BASELINE, EditGrid, Variant, resolve
from sinkscope.errors import EditError, ProbeError
from sinkscope.probes.base import Probe
from sinkscope.probes.gradient import GradientProbe
from sinkscope.prompts import Prompts

if TYPE_CHECKING:
    import os

    from sinkscope.models.handle import Model


def sweep(  # noqa: PLR0913 - one call is the whole interface, as with run
    model: Model,
    prompts: Prompts,
    variants: Mapping[str, Sequence[Edit]],
    probes: Sequence[Probe] = (),
    *,
    executor: Any = None,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 1,
    baseline: bool = False,
    tower: str | None = None,
) -> xr.Dataset:
    """Run every variant on the same prompts and return one reading with a dimension ``edit`` in front.

    The same numbers as :func:`sinkscope.run` once per variant (1e-5), for less work: the pass without edits is made
    once per batch, a variant starts from the stored input of the first block it changes and takes over what lies
    before it, and variants with the same start share a pass. A model whose blocks cannot be entered gets full passes;
    the attribute ``sharing`` says which, and why.

    Args:
        model: the model.
        prompts: the prompts.
        variants: edits by label; an empty list is the run without edits. Or a :func:`grid`, whose axes become the
            dimensions instead of ``edit``.
        probes: what to read.
        executor: None or ``"serial"``: in this process; ``"processes"``: worker processes on this machine, each of
            which loads the model; or any executor with ``submit``, such as those of ``concurrent.futures``,
            ``dask.distributed.Client.get_executor()`` or ``submitit.AutoExecutor``.
        cache: folder of finished results. A sweep that was killed goes on where it was, and gives the same numbers bit
            for bit; a result is found again by what it was computed from, whatever sweep it belongs to.
        batch_size: prompts per pass.
        baseline: also read the run without edits: a variant ``"baseline"`` in front, or with a grid variables that are
            named ``..._baseline`` and lack the grid's dimensions.
        tower: as in :func:`sinkscope.run`.

    Raises:
        EditError, EditHasNoEffect: as in :func:`sinkscope.run`; the message names the variant.
        OutputError: the cache folder cannot be written.
    """
    probes = as_tuple(probes, "probes")
    where = find_tower(model, tower)
    check_request(model, prompts, probes, where, batch_size)
    if slow := next((probe for probe in probes if isinstance(probe, GradientProbe)), None):
        raise ProbeError(
            f"sweep: {type(slow).__name__} needs a backward pass, which variants cannot share. Use sinkscope.run for "
            "each of them."
        )
    executors.check_name(executor)
    prompts = prompts.seen_by(inner_module(model, where), model)
    listed = resolve(variants, where)
    with_baseline = _with_baseline(listed, baseline, isinstance(variants, EditGrid))
    asked = Sweep(model, where, prompts, probes, with_baseline, batch_size)
    asked.announce()
    asked.compute(executor, None if cache is None else disk.prepare(cache, "sweep"))
    axes = variants.axes if isinstance(variants, EditGrid) else None
    return assemble(asked, axes)


def _with_baseline(variants: list[Variant], wanted: bool, is_grid: bool) -> list[Variant]:
    if not wanted:
        return variants
    if any(variant.label == BASELINE for variant in variants):
        raise EditError(
            f"sweep(baseline=True): there is a variant {BASELINE!r} already. Leave baseline=True out, or rename it."
        )
    plain = Variant(BASELINE, (), None)
    return [*variants, plain] if is_grid else [plain, *variants]
