"""Prompts of encoder-decoders: what the encoder reads (the source) and what the decoder reads (the target).

A pair is seen from one side at a time: the encoder's self-attention has the source's tokens, the decoder's those of the
target, and cross-attention has keys of the source and queries of the target.
"""

# pyright: reportUnknownMemberType=false
# (torch's own annotation of tolist has gaps)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from sinkscope.errors import PromptError
from sinkscope.prompts.data import PromptFields
from sinkscope.prompts.frames import AUDIO, describe_frames, own_length
from sinkscope.prompts.identity import image_settings
from sinkscope.prompts.model import PromptModel, source_name
from sinkscope.prompts.placing import device_of
from sinkscope.prompts.text import check_ids, check_list, describe_key0, encode_text, fields_of_ids
from sinkscope.prompts.vocabulary import Vocabulary, config_number
from sinkscope.roles import ROLE_INDEX

_SIDES = {"encoder": "source", "decoder": "target", "cross": "cross"}
"""What each tower of an encoder-decoder sees of a pair."""
_TARGET = {"decoder_input_ids", "decoder_attention_mask", "labels"}


def fields_of_pairs(pairs: Sequence[Any], model: PromptModel) -> PromptFields:
    """Build prompts of (source, target); see ``Prompts.from_pairs``."""
    listed = check_list(pairs, "pairs", "from_pairs")
    if model.kind != "encoder-decoder":
        raise PromptError(f"from_pairs: this model is a {model.kind}, not an encoder-decoder. Use Prompts.from_texts.")
    if _main_input(model) != "input_ids":
        raise PromptError(
            f"from_pairs: the encoder of this model reads {_main_input(model)}, not text. Use Prompts.from_inputs with "
            "its processor's output and decoder_input_ids."
        )
    vocabulary = Vocabulary.of(model)
    sources: list[Any] = []
    targets: list[Any] = []
    for which, pair in enumerate(listed):
        parts: list[Any] = list(cast(Any, pair)) if isinstance(pair, list | tuple) else []
        if len(parts) != 2:
            raise PromptError(f"from_pairs: pair {which} is {repr(cast(Any, pair))[:40]}. A pair is (source, target).")
        sources.append(_encoded(parts[0], which, vocabulary))
        targets.append(_target_ids(parts[1], which, model, vocabulary))
    source = fields_of_ids(sources, model)
    return replace(source, other=_target(targets, model, vocabulary))


def fields_of_pair_inputs(inputs: dict[str, torch.Tensor], model: PromptModel) -> PromptFields:
    """Build prompts of what an encoder-decoder or audio encoder takes; see ``Prompts.from_inputs``."""
    name = next((n for n in ("input_ids", *AUDIO, "pixel_values") if n in inputs), None)
    if name is None:
        raise PromptError(f"from_inputs: {_main_input(model)!r} are missing, got {sorted(inputs)}.")
    if odd := sorted(set(inputs) - {name, "attention_mask"} - _TARGET):
        raise PromptError(
            f"from_inputs: {odd[0]!r} is no input that sinkscope knows of an encoder-decoder. Give "
            f"{_main_input(model)}, attention_mask, decoder_input_ids and decoder_attention_mask."
        )
    vocabulary = Vocabulary.of(model)
    if name == "input_ids":
        source = fields_of_ids(_rows(inputs[name], inputs.get("attention_mask"), name), model)
    else:
        source = _frames(name, inputs, model)
    if not _TARGET & set(inputs):
        return source
    if model.kind != "encoder-decoder":
        raise PromptError(f"from_inputs: this model has no decoder for {sorted(_TARGET & set(inputs))}. Leave it out.")
    if "decoder_input_ids" in inputs:
        targets = _rows(inputs["decoder_input_ids"], inputs.get("decoder_attention_mask"), "decoder_input_ids")
    elif "labels" in inputs:
        labels = _rows(inputs["labels"], (inputs["labels"] != -100).long(), "labels")
        targets = [shifted(row, model) for row in labels]
    else:
        raise PromptError("from_inputs: there is a decoder_attention_mask, but no decoder_input_ids. Give both.")
    if len(targets) != len(source):
        raise PromptError(f"from_inputs: {len(source)} sources, but {len(targets)} targets. They must agree.")
    return replace(source, other=_target(targets, model, vocabulary))


def fields_with_targets(
    prompts: PromptFields, targets: Sequence[Sequence[int]], lengths: Sequence[int], model: PromptModel
) -> PromptFields:
    """Return sources with these targets instead of their own; what lies behind ``lengths`` tokens was generated."""
    other = _target(targets, model, Vocabulary.of(model))
    for role, length in zip(other.roles, lengths, strict=True):
        role[length:] = ROLE_INDEX["generated"]
    return replace(prompts, other=other)


def fields_of_side(prompts: PromptFields, tower: str) -> PromptFields:
    """Return what one tower of an encoder-decoder reads of pairs.

    Args:
        prompts: sources with their targets, as the constructors make them.
        tower: ``encoder``, ``decoder`` or ``cross``.

    Raises:
        PromptError: there are no targets, and the tower needs them.
    """
    side = _SIDES[tower]
    if side == prompts.side:
        return prompts
    if prompts.other is None:
        raise PromptError(
            f"tower={tower!r}: these prompts have a source alone, and the decoder needs a target. Build them with "
            "Prompts.from_pairs([(source, target), ...], model), or from_inputs with decoder_input_ids; or read "
            "tower='encoder'."
        )
    if side == "cross":
        return replace(prompts, side=side)
    return replace(prompts.other, other=replace(prompts, other=None), side=side)


def shifted(labels: Sequence[int], model: PromptModel) -> list[int]:
    """Return what the decoder reads while trained on ``labels``: the start token first, the last label left off."""
    own: Any = getattr(model.model, "prepare_decoder_input_ids_from_labels", None)
    if callable(own):
        given: Any = own(labels=torch.tensor([list(labels)], device=device_of(model.model)))
        return given[0].tolist()
    return [start_of(model), *list(labels)[:-1]]


def start_of(model: PromptModel) -> int:
    """Return the id with which the decoder starts."""
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        number = config_number(model.config, name)
        if number is not None:
            return number
    return 0


def _encoded(source: Any, which: int, vocabulary: Vocabulary) -> Any:
    if not isinstance(source, str):
        return source
    if vocabulary.tokenizer is None:
        raise PromptError(
            "from_pairs: this model has no tokenizer. Pass one to load_model(..., tokenizer=), or give lists of ids."
        )
    return encode_text(source, which, vocabulary.tokenizer, "auto")


def _target_ids(target: Any, which: int, model: PromptModel, vocabulary: Vocabulary) -> Any:
    if not isinstance(target, str):
        return target
    _encoded(target, which, vocabulary)  # the checks of a text
    labels = [int(number) for number in vocabulary.tokenizer(text_target=target)["input_ids"]]
    return shifted(labels, model)


def _target(rows: Sequence[Any], model: PromptModel, vocabulary: Vocabulary) -> PromptFields:
    """Label what the decoder reads; the token it starts with has the role ``bos``, whatever else it is used for."""
    longest = config_number(model.config, "max_target_positions") or model.context_length
    ids = tuple(check_ids(row, which, vocabulary, longest) for which, row in enumerate(rows))
    start = start_of(model)
    roles: list[np.ndarray] = []
    tokens: list[tuple[str, ...]] = []
    for row in ids:
        role, token = vocabulary.label(row)
        role[0] = ROLE_INDEX["bos"] if row[0] == start else role[0]
        roles.append(role)
        tokens.append(token)
    return PromptFields(
        ids, tuple(roles), tuple(tokens), tuple({} for _ in ids), (None,) * len(ids),
        describe_key0(ids, roles, vocabulary), pad_id=vocabulary.pad_id, side="target",
    )  # fmt: skip


def _frames(name: str, inputs: Mapping[str, torch.Tensor], model: PromptModel) -> PromptFields:
    """One prompt for each recording or image."""
    network: Any = model.model
    encoder = network.get_encoder() if model.kind == "encoder-decoder" else network
    masks = inputs.get("attention_mask")
    extras: list[dict[str, torch.Tensor]] = []
    for which, row in enumerate(inputs[name]):
        own = own_length(name, row[None].float(), None if masks is None else masks[which], model.config)
        extras.append({name: own})
    if not extras:
        raise PromptError(f"from_inputs: {name} have no rows. Give at least one.")
    known: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray, tuple[str, ...]]] = {}
    for extra in extras:
        shape = tuple(extra[name].shape)
        if shape not in known:
            known[shape] = describe_frames(encoder, extra)
    ids, roles, tokens = zip(*(known[tuple(extra[name].shape)] for extra in extras), strict=True)
    first = tokens[0][0]
    return PromptFields(
        ids, roles, tokens, tuple(extras), (None,) * len(ids), f"{first} (no BOS: the encoder reads no text)",
        images=image_settings(model) if name == "pixel_values" else None,
    )  # fmt: skip


def _rows(ids: torch.Tensor, mask: torch.Tensor | None, name: str) -> list[list[int]]:
    """Take ids apart by their mask, whichever side was padded."""
    if ids.ndim != 2 or ids.shape[0] == 0 or ids.is_floating_point():
        raise PromptError(
            f"from_inputs: {name} have the shape (prompt, token), got {ids.dtype} of shape {tuple(ids.shape)}."
        )
    if mask is None:
        return [row.tolist() for row in ids.cpu()]
    if mask.shape != ids.shape:
        raise PromptError(
            f"from_inputs: the mask of {name} has shape {tuple(mask.shape)}, but they have {tuple(ids.shape)}. They "
            "must agree."
        )
    real = mask.cpu() != 0
    starts = real.int().diff(dim=1, prepend=torch.zeros_like(real[:, :1]).int()) == 1
    if bool((starts.sum(1) != 1).any()):
        raise PromptError(
            f"from_inputs: the mask of {name} hides tokens between others, or a whole row. Only padding at one end can "
            "be taken apart."
        )
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), real, strict=True)]


def _main_input(model: PromptModel) -> str:
    return source_name(model.model)
