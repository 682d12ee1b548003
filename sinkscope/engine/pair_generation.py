"""Generation by encoder-decoders under edits: the source is encoded once, the decoder goes on from its target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.engine.applied import applied
from sinkscope.prompts import Prompts
from sinkscope.prompts.pairs import fields_with_targets, start_of
from sinkscope.prompts.placing import in_type_of

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

Continue = Callable[[dict[str, torch.Tensor], int, dict[str, Any]], list[np.ndarray]]
"""Runs the model's own generation on inputs: how many tokens it starts with, and further settings, to new ids."""


def generate_targets(
    model: Model, prompts: Prompts, edits: Sequence[Edit], go_on: Continue, batch_size: int, tower: str | None
) -> tuple[Prompts, list[Tally]]:
    """Continue the target of each pair; a source alone gets the token that its decoder starts with.

    Sources are padded on the right, as their encoders are trained; targets of unlike length are run one by one, since
    most decoders count positions without looking at padding.

    Returns:
        The pairs with their longer targets, whose new tokens have the role ``generated``, and what each edit did.
    """
    old = [[start_of(model)]] * len(prompts) if prompts.other is None else [ids.tolist() for ids in prompts.other.ids]
    starts = [len(ids) for ids in old]
    prompts = Prompts(**vars(fields_with_targets(prompts, old, starts, model)))
    totals = [Tally() for _ in edits]
    longer: list[list[int]] = []
    for chosen in _spans(prompts, batch_size, old):
        part = prompts.subset(chosen)
        batch = part.batch(range(len(part)), model.device)
        inputs = in_type_of(model.model, batch.inputs)
        start = {"decoder_start_token_id": old[chosen[0]][0]}  # else the library puts its own in front
        with applied(model, edits, part, tower=tower) as tallies:
            new = go_on(inputs, inputs["decoder_input_ids"].shape[1], start)
        for total, tally in zip(totals, tallies, strict=True):
            total.add(tally)
        longer += [old[row] + more.tolist() for row, more in zip(chosen, new, strict=True)]
    return Prompts(**vars(fields_with_targets(prompts, longer, starts, model))), totals


def _spans(prompts: Prompts, batch_size: int, targets: list[list[int]]) -> Iterator[list[int]]:
    """Prompts in order, together where their targets are alike in length and in their first token."""
    recordings = any(prompts.extras)
    for span in prompts.spans(1 if recordings else batch_size):
        rows = list(span)
        alike = len({(len(targets[row]), targets[row][0]) for row in rows}) == 1
        yield from [rows] if alike else ([row] for row in rows)
