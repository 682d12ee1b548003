"""Sources that are no text: frames of audio and patches of an image, as the first block of an encoder gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sinkscope.errors import PromptError
from sinkscope.prompts.images import prefix_tokens
from sinkscope.prompts.placing import device_of, in_type_of
from sinkscope.roles import ROLE_INDEX

AUDIO = ("input_features", "input_values")
"""Inputs by which models take a recording: spectrograms, and samples."""

BLOCK_LISTS = ("layers", "layer", "blocks", "encoder_layers")
"""Names of the list of blocks of an encoder; an audio encoder may have a longer list of convolutions."""


class _BlockReached(Exception):
    """Raised by the hook on the first block: the rest of the pass is not needed."""


@torch.no_grad()
def frames_of(encoder: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """Count the tokens that the first block of ``encoder`` gets.

    Raises:
        PromptError: the encoder refuses the inputs, or has no blocks.
    """
    whole: Any = encoder  # torch's own annotation of named_modules has a gap
    parts: list[tuple[str, torch.nn.Module]] = list(whole.named_modules())
    lists = {path: m for path, m in parts if isinstance(m, torch.nn.ModuleList) and len(m)}
    named = {path: found for path, found in lists.items() if path.rsplit(".", 1)[-1] in BLOCK_LISTS}
    # A list of convolutions may have such a name too (Data2Vec): blocks are those in which something attends.
    attend = [
        m for path, m in named.items() if any(part.startswith(f"{path}.0.") and "att" in part for part, _ in parts)
    ]
    if not lists:
        raise PromptError(f"{type(encoder).__name__} has no list of blocks; its frames cannot be counted.")
    seen: list[int] = []

    def reached(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen.append(int(states.shape[1]))
        raise _BlockReached

    handle = max(attend or named.values() or lists.values(), key=len)[0].register_forward_pre_hook(
        reached, with_kwargs=True
    )
    placed = {name: tensor.to(device_of(encoder)) for name, tensor in inputs.items()}
    try:
        encoder(**in_type_of(encoder, placed))
    except _BlockReached:
        pass
    except (ValueError, RuntimeError) as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise PromptError(
            f"from_inputs: {type(encoder).__name__} refuses {shapes} ({str(error)[:160]}). Use the model's own "
            "processor."
        ) from None
    finally:
        handle.remove()
    if not seen:
        raise PromptError(f"{type(encoder).__name__} did not run its first block; its frames cannot be counted.")
    return seen[0]


def describe_frames(
    encoder: torch.nn.Module, inputs: Mapping[str, torch.Tensor]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return ids (-1), roles and names of what one recording or image becomes: ``frame 0``, ...; patches ``r0c0``, ...

    Raises:
        PromptError: the encoder refuses the inputs.
    """
    count = frames_of(encoder, inputs)
    if "pixel_values" not in inputs:
        roles = np.full(count, ROLE_INDEX["audio"], dtype=np.int8)
        return np.full(count, -1, dtype=np.int64), roles, tuple(f"frame {n}" for n in range(count))
    patch = getattr(encoder.config, "patch_size", None)
    high, wide = (patch, patch) if isinstance(patch, int) else patch or (1, 1)
    rows, columns = inputs["pixel_values"].shape[-2] // high, inputs["pixel_values"].shape[-1] // wide
    if count < rows * columns:  # an encoder that merges patches
        rows, columns = 1, count
    names = prefix_tokens(encoder, count - rows * columns)
    tokens = (*(name for name, _ in names), *(f"r{r}c{c}" for r in range(rows) for c in range(columns)))
    roles = [ROLE_INDEX[role] for _, role in names] + [ROLE_INDEX["image"]] * (rows * columns)
    return np.full(count, -1, dtype=np.int64), np.array(roles, dtype=np.int8), tokens


def own_length(name: str, row: torch.Tensor, mask: torch.Tensor | None, config: Any) -> torch.Tensor:
    """Cut a recording (1, time, ...) to what its mask shows, so that no frame is padding.

    Whisper pads every recording to thirty seconds itself and attends to all of it: there nothing is cut.

    Raises:
        PromptError: the mask and the recording have different lengths.
    """
    if mask is None or bool((mask != 0).all()) or str(getattr(config, "model_type", "")) == "whisper":
        return row
    if mask.shape[-1] != row.shape[1]:
        raise PromptError(
            f"from_inputs: attention_mask has {mask.shape[-1]} positions, but {name} have {row.shape[1]}. They must "
            "agree."
        )
    return row[:, : int(mask.sum())]
