"""Collating prompts into one batch of model inputs."""

# pyright: reportUnknownMemberType=false
# (torch's own annotation of from_numpy has gaps)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Shaped

from sinkscope.errors import PromptError
from sinkscope.prompts.data import PAD, Batch, PromptFields
from sinkscope.prompts.naflex import NAMES, filled_up

PER_TOKEN = frozenset({"token_type_ids", "mm_token_type_ids"})
"""Inputs with one number per token: padded with zeros like the ids."""

PER_TOKEN_AND_IMAGE = frozenset({"cross_attention_mask", "image_attention_mask"})
"""Inputs (prompt, token, image, ...) that say which images a token sees (Mllama, IDEFICS)."""


def collate(prompts: PromptFields, indices: tuple[int, ...], device: torch.device | str) -> Batch:
    """Build the batch of ``prompts`` at ``indices``.

    Raises:
        PromptError: the prompts can only be run whole, or their further inputs differ in shape or in name.
    """
    if prompts.side == "image":
        return _keys_of_images(prompts, indices, device)
    if prompts.whole is not None:
        return _whole(prompts, indices, device)
    if prompts.other is not None:
        return _pairs(prompts, indices, device)
    lengths = [len(prompts.ids[i]) for i in indices]
    longest = max(lengths)
    real = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    roles = torch.full(real.shape, PAD, dtype=torch.int8)
    ids = torch.full(real.shape, prompts.pad_id, dtype=torch.long)
    for row, index in enumerate(indices):
        roles[row, : lengths[row]] = torch.from_numpy(prompts.roles[index])
        ids[row, : lengths[row]] = torch.from_numpy(prompts.ids[index])
    if len(indices) > 1 and prompts.one_by_one:
        raise PromptError("this vision tower joins all images of a call into one sequence. Run it with batch_size=1.")
    inputs = collate_extras(_one_shape([_masked_to(prompts.extras[i], longest) for i in indices]), longest)
    if bool((ids >= 0).all()):
        inputs["input_ids"] = ids
        if min(lengths) < longest:
            inputs["attention_mask"] = real.long()
    elif min(lengths) < longest and "spatial_shapes" not in inputs:
        raise PromptError(
            f"these images or recordings give {min(lengths)} to {longest} tokens, and their encoder takes no padding. "
            "Run them with batch_size=1."
        )
    return Batch({name: t.to(device) for name, t in inputs.items()}, real.to(device), roles.to(device), indices)


def _pairs(prompts: PromptFields, indices: tuple[int, ...], device: torch.device | str) -> Batch:
    """Collate both sides of pairs; the tokens of the batch are those of the side that is asked for."""
    assert prompts.other is not None
    sides = (prompts.other, prompts) if prompts.side == "target" else (prompts, prompts.other)
    source, target = (collate(replace(each, other=None), indices, device) for each in sides)
    inputs = source.inputs | {f"decoder_{name}": tensor for name, tensor in target.inputs.items()}
    own = target if prompts.side == "target" else source
    return replace(own, inputs=inputs, target=target, cross=prompts.side == "cross")


def _keys_of_images(prompts: PromptFields, indices: tuple[int, ...], device: torch.device | str) -> Batch:
    """The inputs of the texts; the tokens of the batch are the features of their images."""
    assert prompts.other is not None
    text = collate(prompts.other, indices, device)
    lengths = torch.tensor([len(prompts.ids[i]) for i in indices])
    real = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    roles = torch.full(real.shape, PAD, dtype=torch.int8)
    for row, index in enumerate(indices):
        roles[row, : lengths[row]] = torch.from_numpy(prompts.roles[index])
    return Batch(text.inputs, real.to(device), roles.to(device), indices, text, cross=True)


def _masked_to(extra: dict[str, torch.Tensor], longest: int) -> dict[str, torch.Tensor]:
    """Add tokens of padding, which see no image."""
    return extra | {name: along_tokens(extra[name], longest) for name in PER_TOKEN_AND_IMAGE & set(extra)}


def along_tokens(mask: torch.Tensor, length: int, like_last: bool = False) -> torch.Tensor:
    """Return a mask (prompt, token, ...) with more tokens, which see no image or the same ones as the last token."""
    missing = length - mask.shape[1]
    if missing <= 0:
        return mask
    last = mask[:, -1:].expand(-1, missing, *mask.shape[2:])
    return torch.cat([mask, last if like_last else torch.zeros_like(last)], dim=1)


def _whole(prompts: PromptFields, indices: tuple[int, ...], device: torch.device | str) -> Batch:
    assert prompts.whole is not None
    if indices != tuple(range(len(prompts))):
        raise PromptError(
            f"these {len(prompts)} prompts are one processor output that is run whole. "
            f"Run them with batch_size={len(prompts)}, or build them with from_chat."
        )
    real = find_real(prompts.whole)
    roles = torch.full(real.shape, PAD, dtype=torch.int8)
    for row, role in enumerate(prompts.roles):
        roles[row, real[row]] = torch.from_numpy(role)
    inputs = {name: tensor.to(device) for name, tensor in prompts.whole.items()}
    return Batch(inputs, real.to(device), roles.to(device), indices)


def find_real(inputs: Any) -> Bool[torch.Tensor, "batch key"]:
    """Say which positions of a processor's output hold tokens, from its attention mask."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.cpu() != 0


def collate_extras(extras: Sequence[dict[str, torch.Tensor]], longest: int) -> dict[str, torch.Tensor]:
    """Join further inputs by name: per-token ones padded, the others joined along their first dimension.

    Raises:
        PromptError: some prompts lack an input with one number per token, or shapes do not fit.
    """
    names = list(dict.fromkeys(name for extra in extras for name in extra))
    joined: dict[str, torch.Tensor] = {}
    for name in names:
        parts = [extra[name] for extra in extras if name in extra]
        if name not in PER_TOKEN:
            joined[name] = _join(name, parts)
        elif len(parts) == len(extras):
            joined[name] = _pad_tokens(parts, longest)
        else:
            raise PromptError(f"only some of these prompts have {name!r}. Run them with batch_size=1.")
    return joined


def _one_shape(extras: Sequence[dict[str, torch.Tensor]]) -> Sequence[dict[str, torch.Tensor]]:
    """Pad pictures of different shapes on the right and below where the model is told each one's size (Pixtral).

    Lists of patches (SigLIP 2) are filled up behind their end.
    """
    listed = [extra for extra in extras if set(NAMES) <= set(extra)]
    if listed and len(listed) == len(extras):
        longest = max(extra["pixel_values"].shape[1] for extra in listed)
        return [filled_up(extra, longest) for extra in listed]
    own = [extra["pixel_values"] for extra in extras if {"pixel_values", "image_sizes"} <= set(extra)]
    if len(own) < 2 or any(values.ndim != 4 for values in own):
        return extras
    height, width = (max(values.shape[axis] for values in own) for axis in (-2, -1))

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, width - values.shape[-1], 0, height - values.shape[-2]))

    return [
        extra | {"pixel_values": padded(extra["pixel_values"])} if "pixel_values" in extra else extra
        for extra in extras
    ]


def _pad_tokens(parts: list[torch.Tensor], longest: int) -> Shaped[torch.Tensor, "batch key"]:
    return torch.stack([torch.nn.functional.pad(p, (0, longest - len(p))) for p in parts])


def _join(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(p.shape[1:]) for p in parts}
    if (
        len(shapes) > 1
        and all(p.ndim >= 4 and p.shape[2:] == parts[0].shape[2:] for p in parts)
        and _tiled(name, parts)
    ):
        most = max(p.shape[1] for p in parts)
        parts = [_pad_tiles(p, most) for p in parts]
    elif len(shapes) > 1:
        raise PromptError(
            f"{name!r} has shapes {sorted(shapes)} for these prompts, which do not fit in one batch. "
            "Run them with batch_size=1."
        )
    return torch.cat(parts)


def _tiled(name: str, parts: list[torch.Tensor]) -> bool:
    # (image, tile, channel, height, width), and (image, tile, height, width) for its mask.
    return parts[0].ndim == (4 if name == "pixel_attention_mask" else 5)


def _pad_tiles(part: torch.Tensor, most: int) -> torch.Tensor:
    missing = torch.zeros((part.shape[0], most - part.shape[1], *part.shape[2:]), dtype=part.dtype)
    return torch.cat([part, missing], dim=1)
