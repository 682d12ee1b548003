"""What the ablation scripts share: texts, the effect on a model's output, and how an effect is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.schema import Variable


@dataclass(frozen=True)
class Embedding(Probe):
    """Mean over the real tokens of the last residual site: what a sentence encoder gives. Makes ``embedding``."""

    variables: ClassVar[Mapping[str, Variable]] = {
        "embedding": Variable(("prompt", "d_model"), "activation", "mean of the last residual state over the tokens")
    }

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """The last site."""
        return tower.site_names[-1:]

    def at_site(self, hidden: torch.Tensor, context: ProbeContext) -> dict[str, torch.Tensor]:
        """Mean over real tokens."""
        real = context.batch.real[..., None]
        return {"embedding": (hidden.float() * real).sum(1) / real.sum(1)}


def effect_probe(model: sk.Model) -> Probe:
    """The loss of a decoder, the embedding of an encoder."""
    return sk.TokenLoss() if model.is_causal else Embedding()


def change(readings: xr.Dataset, baseline: str = "baseline") -> xr.DataArray:
    """Effect of each edit on each prompt: change of the mean loss, or cosine distance of the embedding.

    Dims (edit, prompt), the baseline left out. A distance is never negative, so it is to be compared with controls.
    """
    if "token_loss" in readings:
        loss = readings["token_loss"].mean("query")
        out = loss.drop_sel(edit=baseline) - loss.sel(edit=baseline, drop=True)
        return out.rename("change").assign_attrs(units="nat", long_name="change of the loss per token")
    vectors = readings["embedding"] / np.sqrt((readings["embedding"] ** 2).sum("d_model"))
    out = 1 - (vectors.drop_sel(edit=baseline) * vectors.sel(edit=baseline, drop=True)).sum("d_model")
    return out.rename("change").assign_attrs(units="1", long_name="cosine distance of the embedding")


def texts(study: Study, n: int = 16) -> sk.Prompts:
    """Code for the language models of the zoo, which know nothing else; prose for any other model."""
    return study.texts("code" if study.model.id.startswith("zoo:lm-") else "prose", n=n)
