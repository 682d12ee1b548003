"""``run``: one pass over prompts that reads what the probes ask, under the edits given, and returns a reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
import xarray as xr
from tqdm.auto import tqdm

from sinkscope import registry
from sinkscope.arguments import is_iterable, shown
from sinkscope.attention.view import Ask, Context, LayerStats, Wants
from sinkscope.engine.ranks import check_ranks, join_heads, refuse_ranks
from sinkscope.engine.reading import ReadingBuilder, Store, provenance
from sinkscope.engine.resume import FinishedBatches
from sinkscope.errors import ModelError, ProbeError, UnsupportedModelError, did_you_mean
from sinkscope.models.backends.base import AttentionSite, Instruments, Output, Tower, streams_elsewhere
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.probes.gradient import GradientProbe
from sinkscope.prompts import Batch, Prompts
from sinkscope.prompts.crossing import CountKeys
from sinkscope.prompts.data import check_batch_size
from sinkscope.prompts.identity import check_prompts
from sinkscope.prompts.model import check_model
from sinkscope.roles import ATTENDED_ROLES, ROLE_INDEX
from sinkscope.schema import validate

if TYPE_CHECKING:
    import os

    from sinkscope.edits.base import Edit
    from sinkscope.engine.plan import Plan
    from sinkscope.models.handle import Model

ALL_ROLES = tuple(ROLE_INDEX[name] for name in ATTENDED_ROLES)


def run(  # noqa: PLR0913 - one call is the whole interface
    model: Model,
    prompts: Prompts,
    probes: Sequence[Probe] = (),
    edits: Sequence[Edit] = (),
    *,
    batch_size: int = 1,
    tower: str | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Read what ``probes`` ask from ``model`` on ``prompts``, under ``edits``, and return one reading.

    All statistics come from one forward pass per batch; no attention map is kept unless a probe names layers and heads.
    The model is left as it was, whatever is raised. ``tower="vision"`` reads the vision part of a larger model. An
    encoder-decoder has ``tower="encoder"``, ``"decoder"`` (the default) and ``"cross"``, whose keys are the source's
    tokens and whose queries are the target's. ``cache`` is a folder of finished batches: a run that was killed goes on
    from it and gives the same numbers bit for bit; a batch is found again by all that its numbers depend on.

    Raises:
        UnsupportedModelError: the model's attention cannot be read, or has no such tower.
        ProbeError: a probe asks for what is not there, or two probes make the same variable.
        PromptError: no prompts.
        ModelError: activations are not finite; the message names the first residual site.
        EditError, EditHasNoEffect: see :mod:`sinkscope.edits`.
        OutputError: the cache cannot be written.
    """
    probes, edits = as_tuple(probes, "probes"), as_tuple(edits, "edits")
    where = _named_tower(model, tower)
    check_ranks(model, probes, edits, cache)
    check_request(model, prompts, probes, where, batch_size)
    prompts = prompts.seen_by(inner_module(model, where), model)
    builder = ReadingBuilder(probes, where, prompts.lengths, query_lengths(prompts, where, probes))
    builder.refuse_large_maps()
    builder.announce()
    paths: set[str] = set()
    # An edit that changes nothing gives a convincing zero effect; the guard makes it an error.
    guard = _guard(model, where, prompts, edits)
    kept = None if cache is None else FinishedBatches(cache, model, where, builder)
    if kept is not None:
        kept.name(prompts, probes, _edits_json(edits), batch_size)
    with torch.no_grad(), model.evaluating():
        for batch in progress(batches(prompts, batch_size, model.device), len(prompts.spans(batch_size)), 1):
            if kept is not None and kept.restore(batch, guard):
                continue
            plan = _plan(edits, where, prompts, batch)
            output = read_batch(model, where, batch, probes, builder, plan)
            paths |= output.paths
            if guard is not None:
                guard.compare(batch, output, plan)
            if kept is not None:
                kept.keep(batch, plan, guard, output.paths)
    paths |= set() if kept is None else kept.paths
    ds = builder.dataset(prompts)
    ds.attrs = provenance(model, where, prompts, probes, _edits_json(edits), paths)
    if guard is not None:
        guard.verdict()
        ds.attrs |= guard.attributes()
    if kept is not None and kept.off:
        ds.attrs["cache"] = f"off: {kept.off}"
    return validate(join_heads(ds, model))


def as_tuple(values: Any, name: str) -> tuple[Any, ...]:
    """Take one value or several as a tuple; a class is refused."""
    items = tuple(values) if is_iterable(values) else (values,)
    if not items and isinstance(values, Iterator):
        raise ProbeError(f"{name}: this generator gives nothing; it may have been gone through before. Give a list.")
    for item in items:
        if isinstance(item, type):
            raise ProbeError(f"{name}: {item.__name__} is a class, not a value. Write {item.__name__}().")
    return items


def find_tower(model: Model, name: str | None) -> Tower:
    """Return the tower to read: the model's default one, or the one named.

    Raises:
        ModelError: ``model`` is no handle.
        UnsupportedModelError: the attention cannot be read at all, there is no such tower, or this is one rank's part.
    """
    found = _named_tower(model, name)
    refuse_ranks(model)
    return found


def _named_tower(model: Model, name: str | None) -> Tower:
    check_model(model, "run")
    if name is not None and not isinstance(cast("object", name), str):
        raise UnsupportedModelError(
            f"tower={shown(name)}: give the name of a tower, such as 'vision', or leave it out."
        )
    towers = model.backend.towers
    if not towers:
        raise UnsupportedModelError(model.backend.why_not)
    wanted = name or model.backend.default_tower
    if wanted not in towers:
        raise UnsupportedModelError(
            f"tower={name!r}: this model has {list(towers)}. Use one of these, or leave it out."
        )
    return towers[wanted]


def check_request(model: Model, prompts: Prompts, probes: Sequence[Probe], tower: Tower, batch_size: int) -> None:
    """Refuse what cannot be served, before anything runs."""
    check_prompts(prompts, model, "run")
    check_batch_size(batch_size, "run")
    made: dict[str, str] = {}
    known = registry.Table("statistic")
    for probe in probes:
        if not isinstance(probe, Probe):
            raise ProbeError(f"run: {probe!r} is no probe. Probes are values such as sinkscope.KeyMass().")
        for name in sorted(probe.statistics):
            if name not in known:
                raise ProbeError(
                    f"{type(probe).__name__}: it needs the statistic {name!r}, which is not registered. There are "
                    f"{', '.join(known)}.{did_you_mean(name, known)}"
                )
        for name in probe.variables:
            if name in made:
                raise ProbeError(
                    f"{type(probe).__name__} and {made[name]} both make the variable {name!r}. Run them one by one."
                )
            made[name] = type(probe).__name__
        probe.check(tower)
        if probe.logits and model.kind != "vision" and tower.decodes and model.model.get_output_embeddings() is None:
            raise _headless(model, probe)
    _check_tower(model, probes, tower)


def _check_tower(model: Model, probes: Sequence[Probe], tower: Tower) -> None:
    """Refuse what a tower of an encoder-decoder does not have, and outputs beside rows of other tokens."""
    for probe in probes:
        if not tower.residual and any("site" in variable.dims for variable in probe.variables.values()):
            why = (
                f"cross-attention has no residual stream of its own. Read {streams_elsewhere(tower)}."
                if tower.cross
                else "this model keeps its stream in another layout than (prompt, token, width). Leave the probe out."
            )
            raise ProbeError(f"{type(probe).__name__}(): {why}")
    predicts = [type(probe).__name__ for probe in probes if probe.logits]
    if predicts and model.kind == "encoder-decoder" and tower.name == "encoder":
        for probe in probes:
            if not probe.logits and any("query" in variable.dims for variable in probe.variables.values()):
                raise ProbeError(
                    f"{predicts[0]} and {type(probe).__name__}: on tower='encoder' the queries of the one are tokens "
                    "of the target, those of the other of the source. Run them one by one."
                )


def _headless(model: Model, probe: Probe) -> ProbeError:
    return ProbeError(f"{type(probe).__name__}(): {model.id} has no output layer. Load the model with its head.")


def query_lengths(prompts: Prompts, tower: Tower, probes: Sequence[Probe]) -> Sequence[int]:
    """Return how many queries each prompt has: those of the target in cross-attention and in what is predicted."""
    theirs = prompts.other is not None and prompts.side != "target"
    if theirs and prompts.other is not None and (tower.cross or any(probe.logits for probe in probes)):
        return prompts.other.lengths
    return prompts.lengths


def inner_module(model: Model, tower: Tower) -> torch.nn.Module | CountKeys | str | None:
    """Return what ``Prompts.seen_by`` needs to know of a tower.

    That is the module of a vision tower inside a larger model, the name of a tower of an encoder-decoder, a count of
    keys for cross-attention to images, and ``None`` for a model's only tower.
    """
    if model.kind == "encoder-decoder":
        return tower.name
    if tower.cross:
        return model.backend.cross_keys
    root = model.backend.vision_root() if tower.name == "vision" and hasattr(model.backend, "vision_root") else None
    return None if root is None else model.model.get_submodule(root)


def batches(prompts: Prompts, batch_size: int, device: torch.device) -> Iterable[Batch]:
    """Batches in prompt order."""
    return (prompts.batch(span, device) for span in prompts.spans(batch_size))


def progress(items: Iterable[Batch], total: int, batch_size: int) -> Iterable[Batch]:
    """A progress bar, silent where there is no terminal or only one batch."""
    count = -(-total // batch_size)
    return tqdm(items, total=count, desc="run", disable=True if count < 2 else None, leave=False)


def read_batch(
    model: Model, tower: Tower, batch: Batch, probes: Sequence[Probe], builder: Store, plan: Plan | None
) -> Output:
    """One forward pass: reads, reduces and stores what the probes ask."""
    instruments, context = prepare(model, tower, batch, probes, builder, plan)
    asked = {probe.logits for probe in probes if probe.logits}
    wanted = "all" if "all" in asked else next(iter(asked), None)
    output = model.backend.forward(batch.inputs, tower, instruments, wanted)
    # Before anything is stored: one NaN in the stream would become NaN in every mean, with no word of its source.
    check_finite(model, tower, batch, output)
    store_outputs(model, probes, output, context, builder)
    for probe in probes:
        if isinstance(probe, GradientProbe):
            _store_gradients(model, tower, probe, context, builder, plan)
    return replace(output, logits=None)


def _store_gradients(
    model: Model, tower: Tower, probe: GradientProbe, context: ProbeContext, builder: Store, plan: Plan | None
) -> None:
    """A second pass, under the same edits, of which autograd keeps the weights that the probe asks for."""
    from sinkscope.engine.gradients import attention_gradients
    from sinkscope.engine.plan import Plan

    edits, prompts = ((), None) if plan is None else (plan.edits, plan.prompts)
    again = Plan(edits, tower, prompts, context.batch)
    found = attention_gradients(
        model, context.batch, probe.gradient_layers, lambda logits: probe.objective(logits, context), plan=again
    )
    for layer, (weights, gradient) in found.items():
        builder.put(probe.at_gradient(weights, gradient, context), context.batch, tower.sites_of(layer)[0])


def store_outputs(model: Model, probes: Sequence[Probe], output: Output, context: ProbeContext, builder: Store) -> None:
    """Store what the probes take from the logits of a pass."""
    scene = replace(context, batch=context.batch.outputs)
    for probe in probes:
        if probe.logits:
            if output.logits is None:
                raise _headless(model, probe)
            builder.put(probe.at_end(output.logits, scene), scene.batch)


def prepare(
    model: Model, tower: Tower, batch: Batch, probes: Sequence[Probe], builder: Store, plan: Plan | None
) -> tuple[Instruments, ProbeContext]:
    """What one forward pass over ``batch`` shall read into ``builder`` and change, and what the probes look at."""
    context = ProbeContext(batch, tower)
    reader = _Reader(model, tower, probes, builder, context)
    instruments = Instruments(
        wants=reader.wants(),
        context=Context(batch.real, batch.roles.long(), ALL_ROLES, batch.queries.real if batch.cross else None),
        edits=plan.call_edits if plan is not None and plan.on_attention else None,
        collect=reader.collect,
        residual=_merge(plan.residual if plan is not None else {}, reader.residual()),
    )
    return instruments, context


def _merge(first: Any, second: Any) -> dict[str, list[Any]]:
    """Residual hooks of edits run before those of probes, so a reading shows what the model goes on with."""
    return {name: [*first.get(name, ()), *second.get(name, ())] for name in {*first, *second}}


class _Reader:
    """Hands each layer's and site's numbers to the probes and their results to the builder."""

    def __init__(
        self, model: Model, tower: Tower, probes: Sequence[Probe], builder: Store, context: ProbeContext
    ) -> None:
        self.model, self.tower, self.probes, self.builder, self.context = model, tower, probes, builder, context
        self.labels: dict[int, list[dict[str, str]]] = {}

    def wants(self) -> dict[int, Wants]:
        """Unite what the probes ask of each layer, and note under which labels each finds its own."""
        layers: dict[int, Wants] = {}
        for site in self.tower.attention:
            wants = Wants()
            asked = [self._asks(probe, site.layer) for probe in self.probes]
            self.labels[site.layer] = [{name: wants.add(ask) for name, ask in asks.items()} for asks in asked]
            if wants.anything:
                layers[site.layer] = wants
        return layers

    def _asks(self, probe: Probe, layer: int) -> Mapping[str, Ask]:
        asks = probe.asks(self.context, layer)
        if odd := sorted({ask.name for ask in asks.values()} - probe.statistics):
            raise ProbeError(
                f"{type(probe).__name__}: it asks for the statistic {odd[0]!r}, which its `statistics` do not name. "
                f"Name it there: they are checked before the run."
            )
        return asks

    def collect(self, at: AttentionSite, stats: LayerStats) -> None:
        """Reduce one attention call and store it."""
        for probe, labels in zip(self.probes, self.labels[at.layer], strict=True):
            if labels:
                self.builder.put(probe.at_layer(stats.named(labels), self.context, at.layer), self.context.batch, at)

    def residual(self) -> dict[str, list[Callable[[torch.Tensor], None]]]:
        """One reading hook per site that some probe reads."""
        hooks: dict[str, list[Callable[[torch.Tensor], None]]] = {}
        sites = [(probe, frozenset(probe.sites(self.tower))) for probe in self.probes]
        for index, name in enumerate(self.tower.site_names):
            readers = [probe for probe, names in sites if name in names]
            if readers:
                hooks[name] = [self._site_hook(readers, index)]
        return hooks

    def _site_hook(self, readers: Sequence[Probe], index: int) -> Callable[[torch.Tensor], None]:
        def hook(hidden: torch.Tensor) -> None:
            for probe in readers:
                self.builder.put(probe.at_site(hidden.detach(), self.context), self.context.batch, index)

        return hook


def check_finite(model: Model, tower: Tower, batch: Batch, output: Output) -> None:
    """Refuse activations that are not finite, naming the first residual site that has one."""
    if bool(torch.isfinite(output.hidden).all()):
        return
    real = batch.queries.real
    if (
        output.hidden.ndim == 3
        and output.hidden.shape[1] == real.shape[1]
        and bool(torch.isfinite(output.hidden[real]).all())
    ):
        return
    first: list[str] = []

    def watch(name: str) -> Callable[[torch.Tensor], None]:
        def hook(hidden: torch.Tensor) -> None:
            if not bool(torch.isfinite(hidden).all()):
                first.append(name)

        return hook

    model.backend.forward(batch.inputs, tower, Instruments(residual={n: [watch(n)] for n in tower.site_names}))
    at = first[0] if first else "after the last block"
    raise ModelError(
        f"{model.id}: activations are not finite (NaN or infinity), first at residual site {at}. "
        "Check the weights, or use a wider dtype (float32 or bfloat16 instead of float16)."
    )


def _plan(edits: Sequence[Edit], tower: Tower, prompts: Prompts, batch: Batch) -> Plan | None:
    if not edits:
        return None
    from sinkscope.engine.plan import Plan

    return Plan(edits, tower, prompts, batch)


def _guard(model: Model, tower: Tower, prompts: Prompts, edits: Sequence[Edit]) -> Any:
    if not edits:
        return None
    from sinkscope.engine.effect import EffectGuard

    return EffectGuard(model, tower, prompts, edits)


def _edits_json(edits: Sequence[Edit]) -> str:
    if not edits:
        return "[]"
    from sinkscope.edits.text import dumps as dump_edits

    return dump_edits(edits)
