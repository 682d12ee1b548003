"""Probes and edits for people who work in TransformerLens: hook functions for their own ``run_with_hooks`` call.

hooks = sk.fwd_hooks(bridge, probes=[sk.KeyMass()], edits=[sk.MaskKeys("first")])
logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks.hooks)
reading = hooks.reading()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr

from sinkscope.edits.text import dumps
from sinkscope.engine.effect import EffectGuard, check_edits, require_editable
from sinkscope.engine.plan import Plan
from sinkscope.engine.reading import ReadingBuilder, provenance
from sinkscope.engine.run import check_request, find_tower, prepare
from sinkscope.errors import EditError, ProbeError, PromptError, UnsupportedModelError
from sinkscope.models.handle import Model, load_model
from sinkscope.probes.base import Probe
from sinkscope.probes.gradient import GradientProbe
from sinkscope.prompts import Prompts
from sinkscope.schema import validate

if TYPE_CHECKING:
    from sinkscope.edits.base import Edit
    from sinkscope.models.backends.lens import LensBackend
    from sinkscope.models.backends.lens_hooks import NamedHook

ENTRY = "embed.hook_in"
"""The hook point that sees the token ids: the first of every pass over text."""


class FwdHooks:
    """Hooks for one bridge, and the reading they leave. Made by :func:`fwd_hooks`.

    Attributes:
        hooks: pairs of hook name and function, for ``bridge.run_with_hooks(..., fwd_hooks=)`` or ``bridge.hooks``.
        inputs: where prompts were given, the arguments to run them with: ``input_ids``, and ``attention_mask`` where
            prompts differ in length.
    """

    def __init__(
        self, model: Model, probes: tuple[Probe, ...], edits: tuple[Edit, ...], prompts: Prompts | None
    ) -> None:
        self._model, self._probes, self._edits, self._asked = model, probes, edits, prompts
        self._backend: LensBackend = model.backend
        self._tower = find_tower(model, None)
        self._batch = None if prompts is None else prompts.batch(range(len(prompts)), model.device)
        self.inputs: dict[str, torch.Tensor] = {} if self._batch is None else dict(self._batch.inputs)
        self._check()
        self._prompts: Prompts | None = None
        self._plan: Plan | None = None
        self._builder: ReadingBuilder | None = None
        self._active: dict[str, Callable[..., Any]] = {}
        names = [ENTRY, *self._points()]
        self.hooks: list[NamedHook] = [(name, self._begin if name == ENTRY else self._at(name)) for name in names]

    def reading(self) -> xr.Dataset:
        """Return the reading of the last pass, as :func:`sinkscope.run` would return it.

        Raises:
            ProbeError: the bridge has not been run with these hooks, or no probe was given.
            EditHasNoEffect: an edit touched nothing.
        """
        if self._builder is None or self._prompts is None or not self._probes:
            raise ProbeError(
                "FwdHooks.reading(): nothing was read. Give fwd_hooks some probes, run "
                "bridge.run_with_hooks(tokens, fwd_hooks=hooks.hooks), then ask for the reading."
            )
        ds = self._builder.dataset(self._prompts)
        edits = dumps(self._edits) if self._edits else "[]"
        ds.attrs = provenance(self._model, self._tower, self._prompts, self._probes, edits, {"dense"})
        guard = self._guard()
        if guard is not None:
            guard.verdict()
            ds.attrs |= guard.attributes()
        return validate(ds)

    def _check(self) -> None:
        """Refuse what cannot be served, before the user's own run begins."""
        if ENTRY not in self._backend.bridge.hook_dict or self._tower.name != "text":
            raise UnsupportedModelError(
                f"fwd_hooks: {self._model.id} does not read token ids. Use sinkscope.run(load_model(bridge), ...)."
            )
        stand_in = self._asked or Prompts.from_ids([[self._model.bos_token_id or 0]], self._model)
        check_request(self._model, stand_in, self._probes, self._tower, 1)
        with_logits = [type(p).__name__ for p in self._probes if p.logits or isinstance(p, GradientProbe)]
        if with_logits:
            raise ProbeError(
                f"fwd_hooks: {with_logits[0]}() reads the output logits, which run_with_hooks returns to you. "
                "Leave it out, or use sinkscope.run(load_model(bridge), ...)."
            )
        if self._edits:
            check_edits(self._edits, self._tower)
            require_editable(self._model)

    def _points(self) -> list[str]:
        """Every hook point that a pass may need."""
        names = ["hook_attn_scores", "hook_v", "hook_pattern", *(["hook_z"] if self._edits else [])]
        known = self._backend.bridge.hook_dict
        points = [seat.point(name) for seat in self._backend.seats for name in (seat.key_hook, *names)]
        sites = [site.path for site in self._tower.residual]
        return [point for point in dict.fromkeys(points + sites) if point in known]

    def _begin(self, ids: torch.Tensor, hook: Any) -> None:
        """A pass begins: resolve probes and edits against the tokens it runs on."""
        tokens = ids.detach()
        if self._batch is not None and not torch.equal(tokens, self._batch.inputs["input_ids"]):
            raise PromptError(
                f"fwd_hooks: the bridge was run on tokens {tuple(tokens.shape)} that are not those of prompts=. "
                "Run it on hooks.inputs['input_ids'], with hooks.inputs.get('attention_mask')."
            )
        prompts = self._asked or Prompts.from_ids(tokens.tolist(), self._model)
        batch = self._batch or prompts.batch(range(len(prompts)), tokens.device)
        builder = ReadingBuilder(self._probes, self._tower, prompts.lengths)
        plan = Plan(self._edits, self._tower, prompts, batch) if self._edits else None
        instruments, _ = prepare(self._model, self._tower, batch, self._probes, builder, plan)
        self._active = dict(self._backend.hooks(self._tower, instruments))
        self._prompts, self._builder, self._plan = prompts, builder, plan

    def _at(self, name: str) -> Callable[..., Any]:
        def run(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
            function = self._active.get(name)
            return None if function is None else function(tensor, hook)

        return run

    def _guard(self) -> EffectGuard | None:
        """What the edits did in the last pass; that they changed the output is for the caller to see."""
        if self._plan is None or self._prompts is None:
            return None
        guard = EffectGuard(self._model, self._tower, self._prompts, self._edits)
        guard.tallies, guard.seen = self._plan.tallies, True
        return guard


def fwd_hooks(
    bridge: Any, probes: Sequence[Probe] = (), edits: Sequence[Edit] = (), prompts: Prompts | None = None
) -> FwdHooks:
    """Make hook functions for ``bridge.run_with_hooks`` out of probes and edits.

    Without ``prompts`` every position of the tokens that the bridge is run on counts as real; give the prompts where
    some are padded, or where roles matter (text, image, system). A pass is read anew each time the bridge is run.

    Args:
        bridge: a TransformerLens ``TransformerBridge`` over text. It is not changed.
        probes: what to read; probes of the output logits are refused, for ``run_with_hooks`` returns the logits.
        edits: what to change.
        prompts: prompts of the run, made with ``load_model(bridge)``.

    Raises:
        EditError: no such layer, head or key.
        UnsupportedModelError: an edit would have no effect on this bridge's attention, or nothing can be read.
        ProbeError: a probe asks for what is not there.
    """
    if not hasattr(bridge, "run_with_hooks"):
        raise UnsupportedModelError(
            f"fwd_hooks: {type(bridge).__name__} is no TransformerBridge. Make one with load_model(...).to_bridge()."
        )
    model = load_model(bridge)
    for edit in edits:
        if isinstance(edit, type):
            raise EditError(f"fwd_hooks: {edit.__name__} is a class, not a value. Write {edit.__name__}(...).")
    return FwdHooks(model, tuple(probes), tuple(edits), prompts)
