"""Models that compute attention by themselves, read off the maps that they return with ``output_attentions=True``.

Reading alone: what is changed in a map that was already used would change nothing. The maps of all layers are held at
once, layers x heads x tokens squared, and are reduced when the pass is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool

from sinkscope.attention.dense import reduce_map
from sinkscope.attention.keywords import check_functions
from sinkscope.attention.seam import configs
from sinkscope.attention.view import Context, Wants
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends import crossing, vision
from sinkscope.models.backends.alone import Batches
from sinkscope.models.backends.base import AttentionSite, Instruments, Output, Tower
from sinkscope.models.backends.discovery import no_cache, tower, trial_inputs
from sinkscope.models.backends.inner_maps import Collect, find_inside, listening
from sinkscope.models.backends.own_errors import inputs_told
from sinkscope.models.backends.pictured import takes_pictures
from sinkscope.models.backends.residual_hooks import residual_hooks
from sinkscope.models.backends.transformers import hidden_state
from sinkscope.models.backends.trial import NOTHING, ModuleCall, Record, Seen, watched
from sinkscope.models.backends.verify import MAPS, TOLERANCE, difference, eager_attention
from sinkscope.models.facts import is_encoder_decoder
from sinkscope.prompts.placing import device_of, in_type_of

TOKENS = 8
"""Tokens of the trial: enough to see which keys a query does not attend to, and to be pooled by four (CANINE)."""

THEMSELVES = "Take them from the model itself (output_attentions=True)"

NOTES = (
    "read off the maps that the model returns: all layers are held at once, layers x heads x tokens squared",
    "read off the maps that its modules hand on: that of one layer at a time, heads x queries x keys",
)
"""What reading costs, where the model returns its maps and where it does not."""


class OwnMapsBackend:
    """Reads the maps that a model returns; edits are refused, and so is what needs keys, values or logits."""

    name = "transformers"

    def __init__(self, model: torch.nn.Module, why: str) -> None:
        self.model, self.why_not = model, why
        self.towers: Mapping[str, Tower] = {}
        self.inside = False
        self._keys: dict[Any, int] = {}
        try:
            check_functions(list(configs(model)))
            with torch.no_grad():
                self.towers, self.inside = _look(model)
        except UnsupportedModelError as error:
            self.why_not = why if str(error) in why or NOTHING in why else f"{why} {error}"
        except Exception as error:  # whatever a model of unknown make raises while it is looked at
            told = f"{type(error).__name__}: {str(error)[:120]}"
            self.why_not = f"{why} It returns no maps either (output_attentions=True ended in {told})."
        self.reading, self.edits = ("dense" if self.towers else "none"), False
        self.default_tower, self.note = next(iter(self.towers), "text"), NOTES[self.inside] if self.towers else ""
        self._batches = Batches(type(model).__name__, self._hidden, unpadded=False)
        if self.towers:
            self.why_not = f"{why} The maps that it returns are read, and an edit of them would change nothing."

    def forward(
        self, inputs: Mapping[str, torch.Tensor], tower: Tower, instruments: Instruments, logits: str | None = None
    ) -> Output:
        """Run the model once, and reduce the maps that it returns.

        Raises:
            UnsupportedModelError: edits, a statistic of keys, values or logits, which maps do not hold, or a batch of
                which a prompt is not computed as it is alone.
        """
        if instruments.edits is not None:
            raise UnsupportedModelError(f"an edit cannot take effect here. {self.why_not}")
        check_functions(list(configs(self.model)))  # somebody may have put one in since
        for wants in instruments.wants.values():
            _check(wants, self.why_not)
        inputs = in_type_of(self.model, inputs)
        with inputs_told(self.model, inputs):
            self._batches.check(inputs)
        collect = self._reducer(instruments)
        maps = {"output_attentions": True} if instruments.wants and not self.inside else {}
        with ExitStack() as stack:
            stack.enter_context(inputs_told(self.model, inputs))
            stack.enter_context(eager_attention(self.model))
            stack.enter_context(residual_hooks(self.model, tower, instruments.residual, vision.rows_of(inputs)))
            if self.inside and instruments.wants:
                stack.enter_context(listening(self.model, tower, collect))
            out = self.model(**inputs, **no_cache(self.model), **maps)
        for site, weights in zip(tower.attention, _maps(out, tower.name) if maps else (), strict=bool(maps)):
            collect(site, weights)
        hidden = out.encoder_last_hidden_state if tower.name == "encoder" else hidden_state(out)
        return Output(hidden, getattr(out, "logits", None), frozenset({"dense"}))

    def _reducer(self, instruments: Instruments) -> Collect:
        def collect(site: AttentionSite, weights: torch.Tensor) -> None:
            wants = instruments.wants.get(site.layer)
            if wants is not None:
                context = instruments.context or _everything_real(weights)
                seen = _visible(context, site.causal, weights.shape[2])
                instruments.collect(site, reduce_map(weights, wants, context, seen))

        return collect

    def cross_keys(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Count the keys that the images in ``inputs`` are to cross-attention."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(inputs.items()))
        if shapes not in self._keys:
            found: list[int] = []
            placed = {name: tensor.to(device_of(self.model)) for name, tensor in inputs.items()}
            with listening(self.model, self.towers[crossing.NAME], lambda _, weights: found.append(weights.shape[3])):
                self._hidden(in_type_of(self.model, placed))
            self._keys[shapes] = found[0]
        return self._keys[shapes]

    @torch.no_grad()
    def _hidden(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return hidden_state(self.model(**inputs, **no_cache(self.model)))


def _check(wants: Wants, why: str) -> None:
    for ask in wants.asks.values():
        of_weights = bool(ask.statistic.reads & {"weights"}) or ask.name == "key_viewers"
        if not of_weights:
            raise UnsupportedModelError(
                f"the statistic {ask.name!r} is of keys, values or logits, and this model gives its maps alone. {why}"
            )


def _maps(out: Any, name: str) -> list[torch.Tensor]:
    """The maps of a tower among what a model returned."""
    found = getattr(out, MAPS.get(name, "attentions"), None) or ()
    return [each for each in found if isinstance(each, torch.Tensor)]


def _everything_real(weights: torch.Tensor) -> Context:
    real = torch.ones((weights.shape[0], weights.shape[3]), dtype=torch.bool, device=weights.device)
    return Context(real, torch.zeros_like(real, dtype=torch.long), (0,))


def _visible(context: Context, causal: bool, queries: int) -> Bool[torch.Tensor, "batch query key"] | None:
    real = context.real
    if not causal and bool(real.all()):
        return None
    seen = real[:, None, :].expand(-1, queries, -1)
    return seen & torch.ones_like(seen).tril() if causal else seen


def _look(model: torch.nn.Module) -> tuple[dict[str, Tower], bool]:
    """The towers of a model, and whether their maps are those of modules inside it."""
    try:
        return _discover(model), False
    except Exception:
        if not takes_pictures(model) or is_encoder_decoder(model) or hasattr(model, "logit_scale"):
            raise
    return find_inside(model), True


def _discover(model: torch.nn.Module) -> dict[str, Tower]:
    """Find the module that makes each map, and from it the blocks, for each tower that returns maps.

    Raises:
        UnsupportedModelError: no maps, maps of other queries and keys than the tokens, or maps of another attention
            than the model's own: only its eager path returns them.
    """
    inputs = _trial(model)
    made: list[tuple[ModuleCall, Any]] = []
    record = Record({id(module): path for path, module in model.named_modules()})
    usual = hidden_state(model(**inputs, **no_cache(model)))
    with eager_attention(model), watched(model, record, lambda entry, output: made.append((entry, output))):
        out = model(**inputs, **no_cache(model), output_attentions=True)
    if not bool(usual.isfinite().all()):
        raise UnsupportedModelError(
            f"On the trial of {TOKENS} tokens it computes numbers that are not finite, so its maps cannot be checked. "
            f"{THEMSELVES}."
        )
    apart = difference(hidden_state(out), usual)
    if not apart <= TOLERANCE.get(usual.dtype, 5e-2):
        raise UnsupportedModelError(
            f"It returns maps of its eager attention alone, by which it computes something else than as it runs "
            f"(largest difference {apart:.2g})."
        )
    names = ("decoder", "encoder", "cross") if is_encoder_decoder(model) else (_only(inputs),)
    found: dict[str, Tower] = {}
    problem = UnsupportedModelError(_no_maps(out, model))
    for name in names:
        maps = _maps(out, name)
        try:
            found |= {name: _tower(model, name, record, made, maps, inputs)} if maps else {}
        except UnsupportedModelError as error:  # ProphetNet's encoder returns logits, its decoder weights
            problem = error
    if not found:
        raise problem
    return found


def _no_maps(out: Any, model: torch.nn.Module) -> str:
    """What is said of a model that gives no maps, or those of parts alone."""
    chosen = any("sdpa" in type(module).__name__.lower() for module in model.modules())
    given = out.items() if isinstance(out, Mapping) else ()
    parts = [name for name, value in given if "attentions" in name and any(map(torch.is_tensor, value or ()))]
    if parts:
        return (
            f"The maps that it returns are of its parts ({', '.join(parts)}), whose rows and keys are not the tokens "
            f"of a prompt (the queries of a detector, what a backbone has made of an image). {THEMSELVES}."
        )
    return (
        "It returns no maps either."
        if not chosen
        else (
            "It returns no maps either. Where its kind of attention is chosen as it is built (Data2Vec, SAM), build it "
            "with attn_implementation='eager'."
        )
    )


def _other_tokens(shapes: set[tuple[int, ...]], tokens: int | None) -> str:
    """What is said of maps whose rows and keys are not all tokens of a prompt, in their order."""
    groups = sorted({(s[0], s[2]) for s in shapes if len(s) == 4 and s[0] > 1 and s[2] == s[3]}, reverse=True)
    if groups:
        told = ", ".join(f"{count} of {size} tokens" for count, size in groups)
        return (
            f"It attends within groups of one prompt's tokens (windows of an image, frames of a video): {told}. So "
            "there is no map over all of them, and which token a row is follows from how the model cuts them. "
            f"{THEMSELVES}, group by group; what a key gets from a whole image is read of encoders that attend to all "
            "of it (ViT, DINOv2, CLIP)."
        )
    return (
        f"The maps that it returns are {sorted(shapes)}{'' if tokens is None else f' for {tokens} tokens'}: pooled or "
        f"windowed, so which token is which key is not known. {THEMSELVES}."
    )


def _trial(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The smallest inputs that show which keys a query does not attend to."""
    first, *more = trial_inputs(model)
    if more or len(set(first) - {"decoder_input_ids"}) != 1:
        raise UnsupportedModelError(f"Maps are read off models of one input, and this one takes {sorted(first)}.")
    if set(first) != {"input_ids"}:
        return {name: torch.randn_like(given) if given.is_floating_point() else given for name, given in first.items()}
    ids = first["input_ids"]
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 0)) or 128  # type: ignore[union-attr]
    return {"input_ids": torch.cat([ids, torch.arange(5, 5 + TOKENS - 1, device=ids.device)[None] % vocabulary], 1)}


def _only(inputs: Mapping[str, torch.Tensor]) -> str:
    return "vision" if set(inputs) == {"pixel_values"} else "text"


def _tower(
    model: torch.nn.Module,
    name: str,
    record: Record,
    made: list[tuple[ModuleCall, Any]],
    maps: list[torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
) -> Tower:
    """One tower, whose maps are those of its layers in order."""
    seen = [_seen(each, made, model) for each in maps]
    shapes = {tuple(each.shape) for each in maps}
    given = next(iter(inputs.values()))
    tokens = given.shape[1] if not given.is_floating_point() and name == "text" else None
    sizes = {shape[2:] for shape in shapes if len(shape) == 4}
    square = name == "cross" or all(rows == keys for rows, keys in sizes)
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes) or len(sizes) != 1 or not square or (
        tokens is not None and sizes != {(tokens, tokens)}
    ):  # fmt: skip
        raise UnsupportedModelError(_other_tokens(shapes, tokens))
    if any(bool((each < 0).any()) or not bool(((each.sum(-1) - 1).abs() < 1e-3).all()) for each in maps):
        raise UnsupportedModelError(
            f"What it returns as attentions are no weights: rows do not sum to 1. {THEMSELVES}."
        )
    found = tower(model, name, record, seen)
    paths = {block.path for block in found.blocks}
    blocks = [entry for entry in _runs(record.outer) if entry.path in paths and entry.given is not None]
    rows = next(iter(sizes))[0]
    batched = all(_tokens(entry) == (1, rows) for entry in blocks)
    return found if batched else replace(found, residual=())


def _tokens(entry: ModuleCall) -> tuple[int, int]:
    """Prompts and tokens of what a block was given, of which only the first tokens may be kept."""
    assert entry.given is not None
    return entry.given.shape[0], entry.tokens if entry.given.ndim == 3 else entry.given.shape[1]


def _runs(entries: list[ModuleCall]) -> Iterator[ModuleCall]:
    for entry in entries:
        yield entry
        yield from _runs(entry.inside)


def _seen(weights: torch.Tensor, made: list[tuple[ModuleCall, Any]], model: torch.nn.Module) -> Seen:
    """The call of the innermost module that gave a map."""
    place = weights.untyped_storage().data_ptr()
    for entry, output in made:  # in the order in which modules end: the innermost first
        parts: Any = output.values() if isinstance(output, Mapping) else output
        parts = parts if isinstance(output, tuple | list | Mapping) else [output]
        if any(isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() == place for part in parts):
            heads, rows, keys = weights.shape[1:]
            config: Any = model.config
            width = int(getattr(config, "hidden_size", None) or getattr(config, "d_model", heads))
            causal = bool((weights.triu(1) == 0).all())
            return Seen(entry, heads, heads, width // heads, rows, causal, False, False, True, keys)
    raise UnsupportedModelError("Which of its modules makes a map was not found.")
