"""What makes visual tokens spike: the vector they share, how large the projector writes them, how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float

from recipes import vision_smol_model as parts

AT = 4
"""Block at whose input spikes are counted: those of SmolLM2 stand from block 2 or 3 to block 9."""

OVER = 20.0
"""Phi over which a visual token spikes."""

SIZES = (0.14, 0.2, 0.3, 0.45, 0.65)
"""Root mean squares at which the projector's output is tried; the first is that of the embeddings of words."""


@torch.no_grad()
def table(
    network: Any, packer: parts.Packer, patches: Sequence[torch.Tensor], calibration: Sequence[torch.Tensor]
) -> list[dict[str, float]]:
    """Count spiking visual tokens as the projector's output is changed, without any training.

    Args:
        network: The vision-language model.
        packer: Of its tokenizer.
        patches: What the tower says of the pictures that are counted on; each (patch width).
        calibration: The same of other pictures, whose mean projection is the shared vector.

    Returns:
        A row for each change: ``shared`` (part of the shared vector that is kept), ``rms`` of what the projector then
        writes, ``tokens`` of a picture, and ``spikes``, visual tokens a picture with phi over 20 in any dimension.
    """
    projector = network.model.multi_modal_projector
    common = parts.shared_vector(network, calibration)
    written = [projector(one) for one in patches]
    rest = [one - common for one in written]
    rows = []
    with _first_blocks(network) as counted:
        for shared, states in ((1.0, written), (0.0, rest)):
            size = float(torch.cat(list(states)).square().mean().sqrt())
            for rms in (size, *SIZES):
                for step in (1, 2, 4) if rms == size else (1,):
                    found = [counted(packer, one[::step] * (rms / size)) for one in states]
                    rows.append({"shared": shared, "rms": round(rms, 3), "tokens": len(states[0][::step]),
                                 "spikes": sum(found) / len(found)})  # fmt: skip
    return rows


@contextmanager
def _first_blocks(network: Any) -> Iterator[Any]:
    """Gives a function (packer, states) that counts spikes at the input of block ``AT``; later blocks are not run."""
    language = network.model.language_model
    whole, seen = language.layers, []

    def note(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0][0])

    def counted(packer: parts.Packer, states: Float[torch.Tensor, "token width"]) -> int:
        start = len(packer.head) - parts.PATCHES
        ids = torch.tensor(packer.head[:start])[None]
        language(inputs_embeds=torch.cat([language.get_input_embeddings()(ids), states[None]], 1), use_cache=False)
        return int((parts.phi(seen.pop()[start:]) > OVER).sum())

    hook = whole[min(AT, len(whole) - 1)].register_forward_pre_hook(note)
    language.layers = whole[: AT + 1]
    try:
        yield counted
    finally:
        language.layers = whole
        hook.remove()
