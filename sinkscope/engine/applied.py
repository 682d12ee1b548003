"""Edits outside a run: every call of a model inside a ``with``, and generation under edits.

The cache makes generation one prefill and many steps of one query. Before each forward pass the cache says at which
position it starts; a pass that starts at 0 is a new prompt, and its attention mask says where the real tokens lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.engine.effect import check_edits
from sinkscope.engine.plan import Plan
from sinkscope.errors import EditError, UnsupportedModelError
from sinkscope.models.backends.base import Instruments, Tower
from sinkscope.models.backends.collector import Collector
from sinkscope.models.backends.residual_hooks import residual_hooks
from sinkscope.prompts import PAD, Batch, Prompts
from sinkscope.prompts.identity import check_prompts
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


@contextmanager
def applied(
    model: Model, edits: Sequence[Edit], prompts: Prompts, *, tower: str | None = None
) -> Iterator[tuple[Tally, ...]]:
    """Run everything inside under ``edits``: ``model.model(...)`` and ``model.model.generate(...)`` alike.

    ``prompts`` are those that the model is given inside, in that order: selections and roles are theirs, whichever side
    the inputs are padded on; whatever follows a prompt is a generated token. Gives one :class:`Tally` per edit, which
    fills as the model runs. A ``sinkscope.run`` inside takes its own edits and is refused here. Inputs of other prompts
    are an error. Other threads that use the model wait until it is left. On leaving the model is as it was.

    Raises:
        EditError: an edit does not fit the model, or the inputs are not those of ``prompts``.
        UnsupportedModelError: this model is not driven by transformers, or cannot be edited.
    """
    check_prompts(prompts, model, "applied")
    backend = model.backend
    if backend.name != "transformers" or not backend.edits:
        raise UnsupportedModelError(
            f"applied: {model.id} is driven by {backend.name}; edits outside a run need the transformers backend. "
            f"{backend.why_not or 'Pass the edits to sinkscope.run.'}"
        )
    if model.kind == "encoder-decoder":
        raise UnsupportedModelError(
            f"applied: {model.id} is an encoder-decoder, which encodes once and decodes in many calls; edits outside a "
            "run are not carried over. Pass the edits to sinkscope.run or sinkscope.sweep with tower=."
        )
    where = backend.towers[tower or backend.default_tower]
    check_edits(tuple(edits), where, prompts)
    live = _Live(model, where, prompts, tuple(edits))
    with model.exclusive(), ExitStack() as stack:
        stack.enter_context(seam.entered(model.model, live.session))
        stack.callback(live.close)
        live.open()
        yield live.tallies


class _Live:
    """The plan of the generation that is under way, and the hooks of the forward pass that is under way."""

    def __init__(self, model: Model, tower: Tower, prompts: Prompts, edits: tuple[Edit, ...]) -> None:
        self.model, self.tower, self.prompts, self.edits = model, tower, prompts, edits
        self.tallies = tuple(Tally() for _ in edits)
        self.session = seam.Session(edits=self._edits)
        self.plan: Plan | None = None
        self.collector: Any = None
        self.depth = 0
        self.pass_hooks: ExitStack | None = None
        self.handles: list[Any] = []

    def open(self) -> None:
        """Watch the model and its headless part, whichever is called."""
        self.handles = watch_passes(self.model.model, self._before, self._after)

    def close(self) -> None:
        """Take every hook out."""
        self._end_pass()
        for handle in self.handles:
            handle.remove()

    def _edits(self, module: torch.nn.Module, call: Call) -> CallEdits | None:
        return None if self.collector is None else self.collector.session.edits(module, call)

    def _before(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        if seam._active.get() is not self.session:
            raise EditError("sinkscope.run inside sinkscope.applied: a run takes its own edits. Pass it edits=[...].")
        offset = _cached_length(kwargs)
        # A pass without a cache begins a new generation: what edits remember of the prompt is made anew.
        if offset == 0 or self.plan is None:
            self.plan = Plan(self.edits, self.tower, self.prompts, self._align(args, kwargs))
            self.plan.tallies[:] = self.tallies
        self.plan.begin(offset)
        instruments = Instruments(edits=self.plan.call_edits, residual=self.plan.residual)
        self.collector = Collector(self.model.model, self.tower, instruments, self.model.backend.write_factor)
        self.pass_hooks = ExitStack()
        rows = len(_main_input(args, kwargs)[1])
        self.pass_hooks.enter_context(residual_hooks(self.model.model, self.tower, instruments.residual, rows))

    def _after(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._end_pass()

    def _end_pass(self) -> None:
        self.depth, self.collector = 0, None
        if self.pass_hooks is not None:
            self.pass_hooks.close()
            self.pass_hooks = None

    def _align(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
        """Find the prompts' tokens in the model's inputs."""
        name, given = _main_input(args, kwargs)
        rows, count = len(given), len(self.prompts)
        if rows % count:
            raise EditError(
                f"applied: the model was given {rows} rows, but there are {count} prompts. Pass those it runs."
            )
        each = rows // count
        if name == "pixel_values":
            shape = (rows, self.prompts.lengths[0])
            real = torch.ones(shape, dtype=torch.bool, device=given.device)
        else:
            mask = kwargs.get("attention_mask")
            real = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
            if isinstance(mask, torch.Tensor) and mask.ndim == 2:
                real = mask.bool()
        roles = torch.full(real.shape, PAD, dtype=torch.int8, device=given.device)
        for row in range(rows):
            own = self.prompts.roles[row // each]
            places = real[row].nonzero()[:, 0]
            ids = given[row, places][: len(own)].cpu() if name == "input_ids" else None
            wrong = ids is not None and ids.tolist() != self.prompts.ids[row // each].tolist()
            if len(places) < len(own) or wrong:
                raise EditError(
                    f"applied: row {row} of the inputs is not prompt {row // each} ({len(own)} tokens). "
                    "Give applied the prompts that the model runs, in their order."
                )
            # What the model was given beyond the prompt it wrote itself.
            roles[row, places] = ROLE_INDEX["generated"]
            roles[row, places[: len(own)]] = torch.from_numpy(own).to(given.device)
        return Batch({name: given}, real, roles, tuple(row // each for row in range(rows)))


def watch_passes(network: torch.nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> list[Any]:
    """Call ``before`` and ``after`` around passes of a model or of its headless part; return the hooks' handles."""
    handles: list[Any] = []
    for module in {id(m): m for m in (network, getattr(network, "base_model", network))}.values():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    return handles


def _main_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, torch.Tensor]:
    for name in ("input_ids", "inputs_embeds", "pixel_values"):
        if isinstance(kwargs.get(name), torch.Tensor):
            return name, kwargs[name]
    if args and isinstance(args[0], torch.Tensor):
        return ("pixel_values" if args[0].ndim == 4 else "input_ids"), args[0]
    raise EditError("applied: the model was called without input_ids, inputs_embeds or pixel_values. Pass one of them.")


def _cached_length(kwargs: dict[str, Any]) -> int:
    cache = kwargs.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
