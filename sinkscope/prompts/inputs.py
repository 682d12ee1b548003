"""Whatever a model's own processor or tokenizer made: taken apart by prompt where it can be, run whole where not."""

# pyright: reportUnknownMemberType=false
# (torch's own annotations of tolist and from_numpy have gaps)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from sinkscope.errors import PromptError
from sinkscope.prompts import grids, naflex
from sinkscope.prompts.batch import PER_TOKEN, find_real
from sinkscope.prompts.data import PatchGrid, PromptFields
from sinkscope.prompts.identity import image_settings
from sinkscope.prompts.images import fields_of_images
from sinkscope.prompts.layouts import own_shapes
from sinkscope.prompts.model import PromptModel
from sinkscope.prompts.pairs import fields_of_pair_inputs
from sinkscope.prompts.text import check_ids, describe_key0, warn_double_bos
from sinkscope.prompts.towers import fields_of_packed, takes_grid
from sinkscope.prompts.videos import fields_of_videos, takes_videos
from sinkscope.prompts.vocabulary import Vocabulary
from sinkscope.roles import ROLE_INDEX

_UNUSED = ("num_crops", "num_patches", "rows", "cols", "offset_mapping", "special_tokens_mask", "length")
"""What processors return beside the model's inputs."""
_OPTIONS = {"inputs_embeds", "logits_to_keep", "num_logits_to_keep", "past_key_values"}
"""Arguments of a forward pass with which it reads other tokens than its ids, or answers for some alone."""
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_BY_IMAGE = ("image_grid_thw", "batch_num_images", "image_sizes", "spatial_shapes")
"""Inputs with one row per image."""


def model_inputs(given: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Return the model's inputs among what a processor returned, as tensors.

    Raises:
        PromptError: one of them is no rectangular tensor.
    """
    return {str(name): _tensor(value, str(name)) for name, value in given.items() if name not in _UNUSED}


def _tensor(value: Any, name: str) -> torch.Tensor:
    try:
        return value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):
        raise PromptError(
            f"{name!r} is no rectangular tensor. Call the processor with return_tensors='pt' and padding=True."
        ) from None


def mark_separators(roles: np.ndarray, grid: PatchGrid | None) -> np.ndarray:
    """Mark placeholders that only end a row of patches as ``special``."""
    if grid is None:
        return roles
    return np.where(grid.separator, ROLE_INDEX["special"], roles).astype(np.int8)


def fields_of_inputs(given: Any, model: PromptModel) -> PromptFields:
    """Build prompts from a processor's output; see ``Prompts.from_inputs``."""
    if not isinstance(given, Mapping):
        raise PromptError(
            f"from_inputs: expected what the model's processor or tokenizer returns, got {type(given).__name__}."
        )
    inputs = model_inputs(cast("Mapping[Any, Any]", given))
    if model.kind in ("encoder-decoder", "audio"):
        return fields_of_pair_inputs(inputs, model)
    if model.kind == "vision":
        if takes_grid(model.model):
            return fields_of_packed(inputs, model)
        if naflex.takes_patches(model.model):
            return fields_of_images(naflex.as_pictures(inputs, int(model.config.patch_size)), model)
        ordered = "noise" in inputs and bool((inputs["noise"].diff(dim=-1) > 0).all())  # ViT-MAE's, which sorts by it
        if set(inputs) - ({"noise"} if ordered else set()) != {"pixel_values"}:
            raise PromptError(f"from_inputs: a vision encoder takes 'pixel_values' alone, got {sorted(inputs)}.")
        if takes_videos(model.config):
            return fields_of_videos(inputs["pixel_values"], model)
        return fields_of_images(list(inputs["pixel_values"].float()), model)
    real = _check_mask(inputs)
    vocabulary = Vocabulary.of(model)
    labelled: list[tuple[np.ndarray, np.ndarray, tuple[str, ...]]] = []
    for which, (row, keep) in enumerate(zip(inputs["input_ids"].cpu(), real, strict=True)):
        if not keep.any():
            raise PromptError(f"from_inputs: row {which} is all padding: its attention_mask is 0 everywhere.")
        array = check_ids(row[keep].numpy(), which, vocabulary, model.context_length)
        labelled.append((array, *vocabulary.label(array)))
    ids, roles, tokens = zip(*labelled, strict=True)
    key0 = describe_key0(ids, roles, vocabulary)
    warn_double_bos(ids, vocabulary, "from_inputs")
    # A mask that hides tokens inside a prompt leaves the others at their places; taken apart they would move.
    apart = set(inputs) <= {"input_ids", "attention_mask", *PER_TOKEN} and not _has_holes(real)
    if apart:
        own = sorted(PER_TOKEN & set(inputs))
        extras = [{name: inputs[name].cpu()[i][real[i]] for name in own} for i in range(len(ids))]
        _refuse_lone_placeholders(roles)
        return PromptFields(ids, roles, tokens, tuple(extras), (None,) * len(ids), key0, pad_id=vocabulary.pad_id)
    pictures = any(word in name for name in inputs for word in ("pixel", "image", "video"))
    if not pictures:
        _refuse_lone_placeholders(roles)
    places = _place_whole(model, roles, inputs) if pictures else (None,) * len(roles)
    roles = tuple(mark_separators(role, grid) for role, grid in zip(roles, places, strict=True))
    extras = [dict[str, torch.Tensor]()] * len(ids)
    return PromptFields(
        ids,
        roles,
        tokens,
        tuple(extras),
        places,
        key0,
        whole=inputs,
        pad_id=vocabulary.pad_id,
        images=image_settings(model) if "pixel_values" in inputs else None,
    )


def _has_holes(real: torch.Tensor) -> bool:
    """Say whether some row has padding between two tokens."""
    starts = real.int().diff(dim=1, prepend=torch.zeros_like(real[:, :1]).int()) == 1
    return bool((starts.sum(1) > 1).any())


def _check_mask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        raise PromptError(f"from_inputs: 'input_ids' are missing, got {sorted(inputs)}.")
    if options := sorted(_OPTIONS & set(inputs)):
        raise PromptError(
            f"from_inputs: {options[0]!r} says how the model is run and is no part of a prompt: tokens of the reading "
            "would be others than those of the pass. Leave it out."
        )
    if ids.ndim != 2 or ids.shape[0] == 0 or ids.dtype not in _WHOLE:
        raise PromptError(
            f"from_inputs: input_ids have the shape (prompt, token), got {ids.dtype} of shape {tuple(ids.shape)}. "
            "Call the processor with return_tensors='pt'."
        )
    for name in ("attention_mask", *sorted(PER_TOKEN)):
        if name in inputs and inputs[name].shape != ids.shape:
            raise PromptError(
                f"from_inputs: {name} has shape {tuple(inputs[name].shape)}, but input_ids have {tuple(ids.shape)}. "
                "They must agree."
            )
    if mask is not None and not bool(((mask == 0) | (mask == 1)).all()):
        raise PromptError("from_inputs: attention_mask must hold only 0 (padding) and 1 (token).")
    return find_real(inputs)


def _refuse_lone_placeholders(roles: tuple[np.ndarray, ...]) -> None:
    for which, role in enumerate(roles):
        count = int((role == ROLE_INDEX["image"]).sum())
        if count:
            raise PromptError(
                f"from_inputs: prompt {which} holds {count} image placeholder tokens but there are no pixel_values. "
                "Pass the processor's whole output."
            )


def _place_whole(
    model: PromptModel, roles: tuple[np.ndarray, ...], inputs: dict[str, torch.Tensor]
) -> tuple[PatchGrid | None, ...]:
    """Place visual tokens of a batch, images in order."""
    masks = [role == ROLE_INDEX["image"] for role in roles]
    counts = grids.images_of(model.config, masks, inputs)
    if counts is None:
        return (None,) * len(roles)
    processor = getattr(model.processor, "image_processor", None)
    original = None if own_shapes(model.config) else inputs.get("image_sizes")
    places: list[PatchGrid | None] = []
    start = 0
    for which, (mask, count) in enumerate(zip(masks, counts, strict=True)):
        own = {name: inputs[name][start : start + count] for name in _BY_IMAGE if name in inputs}
        own |= {name: inputs[name] for name in ("pixel_values",) if name in inputs}
        if original is None:
            sizes = [grids.UNKNOWN] * count
        else:
            sizes = [(float(h), float(w)) for h, w in original[start : start + count]]
        places.append(grids.place(model.config, processor, mask, sizes, own, which))
        start += count
    return tuple(places)
