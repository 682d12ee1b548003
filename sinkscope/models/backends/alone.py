"""Whether a model computes a prompt in a batch as it does alone: padding must not leak into what is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from sinkscope.errors import UnsupportedModelError

Run = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""Gives logits or hidden states (batch, token, width) for the inputs of a model."""

PAIR = {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"}
"""Inputs of an encoder-decoder for texts."""


class Batches:
    """Refuses batches that a model mixes up; found out once for padded batches, and once for others where asked."""

    def __init__(self, name: str, run: Run, *, unpadded: bool = True) -> None:
        self.name, self.run, self.unpadded = name, run, unpadded
        self._same: dict[bool, bool] = {}

    def check(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Run the shortest prompt of a batch also alone, without a mask, the first time that there is such a batch.

        GPT-1's adapter in TransformerLens forgets the causal order as soon as it is given a mask of padding; ConvBERT's
        convolutions run across padding.

        Raises:
            UnsupportedModelError: what comes out differs.
        """
        if set(inputs) == PAIR:
            self._check_pairs(inputs)
            return
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or mask is None or len(ids) < 2 or any(t.shape != ids.shape for t in inputs.values()):
            return
        padded = not bool(mask.all())
        if not padded and not self.unpadded:
            return
        if padded not in self._same:
            row = int(mask.sum(1).argmin()) if "position_ids" in inputs else _shortest(mask)
            if row is None or (padded and bool(mask[row].all())):
                return
            self._same[padded] = self._compare(inputs, mask, row)
        self._refuse(padded)

    def _refuse(self, padded: bool) -> None:
        if not self._same[padded]:
            raise UnsupportedModelError(
                f"{self.name} computes a prompt in a {'padded ' if padded else ''}batch otherwise than alone. Use "
                "batch_size=1."
            )

    def _check_pairs(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """The same of pairs, by what comes out for the target: ProphetNet's decoder makes NaN of padding."""
        sides = (inputs["attention_mask"].bool(), inputs["decoder_attention_mask"].bool())
        if len(sides[0]) < 2 or all(bool(side.all()) for side in sides):
            return
        if True not in self._same:
            row = int((sides[0].sum(1) + sides[1].sum(1)).argmin())
            named = ((name, sides["decoder" in name]) for name in sorted(PAIR))
            alone = {name: inputs[name][row : row + 1][:, side[row]] for name, side in named}
            self._same[True] = _near(self.run(inputs)[row][sides[1][row]], self.run(alone)[0])
        self._refuse(True)

    def _compare(self, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor, row: int) -> bool:
        real = mask[row].bool()
        others = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
        alone = {n: t[row : row + 1][:, real] if t.shape == mask.shape else t for n, t in others.items()}
        return _near(self.run(inputs)[row][real], self.run(alone)[0])


def _near(whole: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether the two differ by rounding alone; not where either is NaN."""
    exact = own.dtype in (torch.float32, torch.float64)
    return bool((whole - own).abs().max() <= (1e-3 if exact else 5e-2) * own.abs().max())


def _shortest(mask: torch.Tensor) -> int | None:
    """The row with the fewest tokens, of those that begin at the first place and have no gap.

    Cut out of the others, tokens would stand at other positions than in the batch, and differ for that, unless the
    inputs say the positions.
    """
    begun = (mask != 0).cummin(1).values.sum(1)
    rows = [row for row in range(len(mask)) if int(begun[row]) == int((mask[row] != 0).sum())]
    return min(rows, key=lambda row: int(begun[row]), default=None)
