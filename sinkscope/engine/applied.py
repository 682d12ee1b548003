"""Edits outside a run: every call of a model inside a ``with``, and generation under edits.

The cache makes generation one prefill and many steps of one query. Before each forward pass the cache says at which
position it starts; a pass that starts at 0 is a new prompt, and its attention mask says where the real tokens lie.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.engine.effect import check_edits
from sinkscope.engine.plan import Plan
from sinkscope.engine.run import as_tuple, find_tower, inner_module
from sinkscope.errors import EditError, UnsupportedModelError
from sinkscope.models.backends.base import Instruments, Tower
from sinkscope.models.backends.collector import Collector
from sinkscope.models.backends.residual_hooks import residual_hooks
from sinkscope.prompts import PAD, Batch, Prompts
from sinkscope.prompts.data import PromptFields
from sinkscope.prompts.identity import check_prompts
from sinkscope.roles import ROLE_INDEX

MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
"""Inputs of token ids, and the masks that say which of them are padding."""
MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")

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

    In an encoder-decoder the edits act in one tower: ``"encoder"`` whenever the encoder runs, ``"decoder"`` (the
    default) and ``"cross"`` in every step of the decoder. The prompts then have targets, with which it starts. In a
    decoder with cross-attention to images ``"cross"`` is the tower of those.

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
    where = find_tower(model, tower)
    if model.kind == "encoder-decoder" or where.cross:
        prompts = prompts.seen_by(inner_module(model, where), model)
    edits = as_tuple(edits, "edits")
    check_edits(edits, where, prompts)
    live = _Live(model, where, prompts, edits)
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
        sides = {"encoder": "source", "decoder": "target", "cross": "cross"} if model.kind == "encoder-decoder" else {}
        self.side = sides.get(tower.name, "image" if tower.cross else "")
        # The keys that these blocks keep are the image's.
        default = model.backend.towers[model.backend.default_tower]
        self.uncounted = {block.layer for block in default.blocks if block.kind == "cross"}
        self.pass_hooks: ExitStack | None = None
        self.handles: list[Any] = []

    def open(self) -> None:
        """Watch the model and its headless part, whichever is called; the encoder where that alone is edited."""
        network: Any = self.model.model
        watched = network.get_encoder() if self.side == "source" else network
        self.handles = watch_passes(watched, self._before, self._after)

    def close(self) -> None:
        """Take every hook out."""
        self._end_pass()
        for handle in self.handles:
            handle.remove()

    def _edits(self, module: torch.nn.Module, call: Call) -> CallEdits | None:
        if self.collector is None:
            return None
        if self.tower.cross and self.plan is not None:  # its mask counts the queries of a step from 0
            call = replace(call, mask=replace(call.mask, q_offset=self.plan.offset))
        return self.collector.session.edits(module, call)

    def _before(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        if seam._active.get() is not self.session:
            raise EditError("sinkscope.run inside sinkscope.applied: a run takes its own edits. Pass it edits=[...].")
        offset = _cached_length(kwargs, self.uncounted)
        # A pass without a cache begins a new generation: what edits remember of the prompt is made anew.
        if offset == 0 or self.plan is None:
            self.plan = Plan(self.edits, self.tower, self.prompts, self._align(args, kwargs))
            self.plan.tallies[:] = self.tallies
        self.plan.begin(offset)
        instruments = Instruments(edits=self.plan.call_edits, residual=self.plan.residual)
        self.collector = Collector(self.model.model, self.tower, instruments, self.model.backend.write_factor)
        self.pass_hooks = ExitStack()
        rows = len(self._main_input(args, kwargs)[1])
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

    def _main_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, torch.Tensor]:
        names = ("decoder_input_ids",) if self.side in ("target", "cross") else MAIN_INPUTS
        for name in names:
            if isinstance(kwargs.get(name), torch.Tensor):
                return name, kwargs[name]
        if args and isinstance(args[0], torch.Tensor) and names is MAIN_INPUTS:
            return ("input_ids" if args[0].ndim == 2 else "pixel_values"), args[0]
        raise EditError(f"applied: the model was called without {', '.join(names)}. Pass one of them by name.")

    def _align(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
        """Find the prompts' tokens in the model's inputs."""
        name, given = self._main_input(args, kwargs)
        if not self.tower.cross:
            return self._placed(self.prompts, name, given, kwargs.get(MASKS.get(name, "attention_mask")))
        assert self.prompts.other is not None
        target = self._placed(self.prompts.other, name, given, kwargs.get(MASKS.get(name, "attention_mask")))
        longest = max(self.prompts.lengths)
        mask = kwargs.get("attention_mask") if self.side == "cross" else None  # that of an image hides by query
        fits = isinstance(mask, torch.Tensor) and mask.shape == (len(given), longest)
        source = torch.zeros(len(given), longest, device=given.device)
        own = self._placed(self.prompts, "source", source, mask if fits else None)
        return replace(own, target=target, cross=True)

    def _placed(self, prompts: PromptFields, name: str, given: torch.Tensor, mask: Any) -> Batch:
        rows, count = len(given), len(prompts)
        if rows % count:
            raise EditError(
                f"applied: the model was given {rows} rows, but there are {count} prompts. Pass those it runs."
            )
        each = rows // count
        with_ids = name in MASKS
        if with_ids or name in ("inputs_embeds", "source"):
            real = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
            if isinstance(mask, torch.Tensor) and mask.ndim == 2:
                real = mask.bool()
        else:  # one token for each patch or frame
            real = torch.ones((rows, len(prompts.ids[0])), dtype=torch.bool, device=given.device)
        roles = torch.full(real.shape, PAD, dtype=torch.int8, device=given.device)
        for row in range(rows):
            own = prompts.roles[row // each]
            places = real[row].nonzero()[:, 0]
            ids = given[row, places][: len(own)].cpu() if with_ids else None
            wrong = ids is not None and ids.tolist() != prompts.ids[row // each].tolist()
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


def _cached_length(kwargs: dict[str, Any], uncounted: Collection[int] = ()) -> int:
    """Tokens in the cache; layers without attention (MiniMax's first) count none, or refuse to say (Bamba's).

    Layers in ``uncounted`` keep other keys than the text's (Mllama's image).
    """
    cache = kwargs.get("past_key_values")
    if cache is None or not hasattr(cache, "get_seq_length"):
        return 0
    lengths = [0]
    for layer in set(range(len(getattr(cache, "layers", ())) or 1)) - set(uncounted):
        with suppress(ValueError, IndexError, NotImplementedError):
            lengths.append(int(cache.get_seq_length(layer)))
    return max(lengths)
