"""Finding out what a transformers model is made of, from the record of one trial run.

Nothing is looked up by architecture name. A module that calls the attention function makes an attention layer; the
first projection that then reads an input of heads x width is its W_O; the list member it runs in is its block, and the
other members of that list are the blocks without attention.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.masks import MaskSpec
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, Block, Tower
from sinkscope.models.backends.blocks import find_blocks
from sinkscope.models.backends.crossing import cross_tower
from sinkscope.models.backends.kinds import kind_of
from sinkscope.models.backends.pictured import FILLER, pictured_inputs, takes_pictures
from sinkscope.models.backends.pictures import trial_picture
from sinkscope.models.backends.stream import residual_sites, turn_of
from sinkscope.models.backends.trial import Record, Seen, parts_of, watch
from sinkscope.models.backends.two_sided import pair_inputs, recording, split_calls
from sinkscope.models.facts import AUDIO_INPUTS, is_encoder_decoder, main_input
from sinkscope.prompts.naflex import inputs_of, trial_size
from sinkscope.prompts.placing import device_of
from sinkscope.prompts.towers import takes_grid

VISION_ROOTS = ("vision_tower", "visual", "vision_model", "vision_encoder")


def discover(model: torch.nn.Module) -> dict[str, Tower]:
    """Find the towers of ``model``: ``text`` first where there is one, ``vision`` where there is one.

    An encoder-decoder has ``decoder``, ``encoder`` and ``cross``.

    Raises:
        UnsupportedModelError: the model has no attention, or its attention bypasses the library's interface.
    """
    pictured = takes_pictures(model) and not is_encoder_decoder(model) and not hasattr(model, "logit_scale")
    refusals: list[UnsupportedModelError] = []
    record, problem = None, None
    try:
        record = _watch_trial(model)
    except Exception as error:
        problem = error
    if record is None:
        found = _watch_pictured(model, refusals) if pictured else None
        if found is None:
            assert problem is not None
            raise refusals[0] if refusals else problem
        return pictured_towers(model, *found)
    if is_encoder_decoder(model):
        return {name: tower(model, name, record, calls) for name, calls in split_calls(model, record.calls).items()}
    if pictured and _left_out(model, record):
        found = _watch_pictured(model, refusals)
        if found is not None:
            return pictured_towers(model, *found)
    return _towers(model, record)


def _left_out(model: torch.nn.Module, record: Record) -> bool:
    """Say whether some block was not run, of a list of which others attend."""
    ran = {id(entry.module) for call in record.calls for entry in call.by.chain}
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return any(
        any(id(member) in ran for member in members) and any(record.runs[id(member)] == 0 for member in members)
        for members in lists
    )


def _watch_pictured(model: torch.nn.Module, refusals: list[UnsupportedModelError]) -> tuple[Record, int] | None:
    """Record a trial run with an image, and its number of tokens; None where no form of one runs.

    ``refusals`` takes what is said of a form that runs, and in which nothing calls attention (BLIP, ViLT).
    """
    ids = trial_inputs(model)[0].get("input_ids")
    start = 0 if ids is None else int(ids[0, 0])
    for tensors in (False, True):
        for inputs in pictured_inputs(model, [start] * FILLER):
            seam.give_tensors(model, tensors)
            try:
                record = watch(model, lambda given=inputs: model(**given, **no_cache(model)))
            except Exception as error:  # another form, or none
                if isinstance(error, UnsupportedModelError) and error.__context__ is None:
                    refusals.append(error)
                continue
            return record, inputs["input_ids"].shape[1]
    seam.give_tensors(model, False)
    return None


def pictured_towers(model: torch.nn.Module, record: Record, tokens: int) -> dict[str, Tower]:
    """The language part of a model that was run with an image: calls of all tokens, and those with keys of the image.

    A connector between the two (Q-Former, perceiver) is no tower.
    """
    root = find_vision_root(model)
    calls = [call for call in record.calls if root is None or not f"{call.by.path}.".startswith(f"{root}.")]
    own = [call for call in calls if (call.rows, call.keys) == (tokens, tokens)]
    if not own:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no attention call has the {tokens} tokens of a text as its queries and keys. The "
            "image's tokens stand beside them in one sequence, or it computes attention by itself, so which token is "
            "which is not known. Read its encoders by themselves."
        )
    crossing = [call for call in calls if call.keys != tokens == call.rows]
    text = tower(model, "text", record, own, crossing)
    cross = cross_tower(model, record, text, own, crossing)
    return {"text": text} if cross is None else {"text": text, "cross": cross}


def _watch_trial(model: torch.nn.Module) -> Record:
    """Record the trial run; a model that computes with its mask is run again with tensors for masks."""
    seam.give_tensors(model, False)
    inputs = trial_inputs(model)
    try:
        return watch(model, lambda: _run_trial(model, inputs))
    except Exception as error:
        if isinstance(error, UnsupportedModelError) and error.__context__ is None:
            raise  # nothing failed: there is no call, or one that is refused
        seam.give_tensors(model)
        try:
            return watch(model, lambda: _run_trial(model, inputs))
        except Exception as again:  # it was not the mask alone
            seam.give_tensors(model, False)
            raise (again if MaskSpec.__name__ in str(error) else error) from None


def explore(model: torch.nn.Module, name: str, run: Callable[[], Any]) -> Tower:
    """Find the tower ``name`` of ``model`` whose attention layers are those that ``run()`` calls.

    Raises:
        UnsupportedModelError: it calls none.
    """
    record = watch(model, run)
    return tower(model, name, record, record.calls)


def _run_trial(model: torch.nn.Module, given: list[dict[str, torch.Tensor]]) -> None:
    for inputs in given:
        model(**inputs, **no_cache(model))


def no_cache(model: torch.nn.Module) -> dict[str, Any]:
    """Keyword arguments that keep ``model`` from making a cache."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def trial_inputs(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    """Return the smallest inputs that reach every attention layer: one token, one blank image, or both."""
    if is_encoder_decoder(model):
        return [pair_inputs(model)]
    if takes_grid(model):
        return [trial_picture(model)]
    main = main_input(model)
    if main in AUDIO_INPUTS:
        return [recording(model)]
    config: Any = model.config
    device = device_of(model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    start = next((i for i in (getattr(text, n, None) for n in ("bos_token_id", "eos_token_id")) if _is_id(i, text)), 0)
    ids = torch.tensor([[start]], device=device)
    vision = getattr(config, "vision_config", None)
    if main == "pixel_values" and vision is None:
        return [_blank(config, model)]
    if vision is not None and hasattr(model, "logit_scale"):
        return [{"input_ids": ids, **_blank(vision, model)}]
    return [{"input_ids": ids}]


def _is_id(value: Any, text: Any) -> bool:
    return isinstance(value, int) and 0 <= value < getattr(text, "vocab_size", 1)


def _blank(config: Any, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    height, width = trial_size(model, config)
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    channels = getattr(config, "num_channels", 3)
    frames = [config.num_frames] if isinstance(getattr(config, "num_frames", None), int) else []
    pixels = torch.zeros(1, *frames, channels, height, width, device=device_of(model), dtype=parameter.dtype)
    return inputs_of(model, pixels)


def find_vision_root(model: torch.nn.Module) -> str | None:
    """Return the path of the vision part of a larger model."""
    for path, _ in model.named_modules():
        if path.split(".")[-1] in VISION_ROOTS:
            return path
    return None


def _towers(model: torch.nn.Module, record: Record) -> dict[str, Tower]:
    config: Any = model.config
    both = getattr(config, "vision_config", None) is not None
    root = find_vision_root(model) if both else None
    groups: dict[str, list[Seen]] = {}
    only_vision = takes_grid(model) or (main_input(model) == "pixel_values" and not both)
    for call in record.calls:
        inside = only_vision or (root is not None and f"{call.by.path}.".startswith(f"{root}."))
        groups.setdefault("vision" if inside else "text", []).append(call)
    if only_vision:
        _refuse_other_rows(model, record.calls)
    return {name: tower(model, name, record, groups[name]) for name in ("text", "vision") if name in groups}


def _refuse_other_rows(model: torch.nn.Module, calls: Iterable[Seen]) -> None:
    """Refuse an image encoder in which something attends to other tokens than those that attend."""
    unlike = sorted({(call.rows, call.keys) for call in calls if call.rows != call.keys})
    if unlike:
        told = ", ".join(f"{rows} on {keys}" for rows, keys in unlike)
        raise UnsupportedModelError(
            f"{type(model).__name__}: not all of its attention is of an image's tokens on each other: {told} (the "
            "queries of a detector, or keys that are pooled), so which token is which patch is not known."
        )


def tower(model: torch.nn.Module, name: str, record: Record, calls: list[Seen], crossing: Iterable[Seen] = ()) -> Tower:
    """Number the blocks of one group of calls, and find its attention calls and residual-stream sites.

    ``crossing`` are calls made in the same stack with keys of an image: a block that makes no others may be left out.
    """
    if blocks := max(call.batch for call in calls) - 1:
        raise UnsupportedModelError(
            f"{type(model).__name__}: it attends within {blocks + 1} groups of one prompt's tokens, laid out as a "
            f"batch, so which token is which key is not known.{parts_of(model, base=False)}"
        )
    entries, of_call = find_blocks(model, record, calls)
    across = {id(entry) for call in crossing for entry in call.by.chain}
    layer_of = {id(entry): layer for layer, entry in enumerate(entries)}
    made: Counter[int] = Counter()
    sites = []
    for call, block in zip(calls, of_call, strict=True):
        layer = layer_of[id(block)]
        output = None if call.output is None else record.paths[id(call.output)]
        sites.append(
            AttentionSite(
                layer, call.by.path, call.heads, call.kv_heads, call.head_dim, call.causal and name != "cross",
                call.implicit_sink, output, made[layer],
            )
        )  # fmt: skip
        made[layer] += 1
    inside = [[call for call, block in zip(calls, of_call, strict=True) if block is entry] for entry in entries]
    blocks = tuple(
        Block(layer, entry.path, kind_of(entry, own, layer, len(entries)), turn_of(record, entry))
        if own or id(entry) not in across
        else Block(layer, entry.path, "cross", turn_of(record, entry))
        for layer, (entry, own) in enumerate(zip(entries, inside, strict=True))
    )
    # The stream of cross-attention is the decoder's, and its tokens are the queries, not the keys.
    optional = [id(entry) in across and not own for entry, own in zip(entries, inside, strict=True)]
    both = name == "decoder" or any(id(entry) in across and own for entry, own in zip(entries, inside, strict=True))
    residual = () if name == "cross" else tuple(residual_sites(record, entries, inside, both, optional))
    first = entries[0].given
    if first is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: the first block ({entries[0].path}) is not called with a tensor, so there is no "
            "residual stream to read."
        )
    return Tower(name, tuple(sites), residual, first.shape[-1], blocks)
