"""What the ablation scripts share: arguments, texts, the embedding as an effect measure, and saved figures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.backends.base import Tower
from sinkscope.probes.base import Probe, Scene
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

    def at_site(self, hidden: torch.Tensor, scene: Scene) -> dict[str, torch.Tensor]:
        """Mean over real tokens."""
        real = scene.batch.real[..., None]
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


def arguments(description: str, model: str = "minilm") -> tuple[argparse.Namespace, sk.Model, sk.Prompts]:
    """Read ``--model`` and ``--output``, load the model, and make prompts of the texts that come with the package.

    A planted model (``--model planted``) and zoo models without a tokenizer get random ids instead.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default=model, help="minilm, planted, zoo:NAME, a folder or a hub id")
    parser.add_argument("--output", type=Path, default=Path("out/ablations"), help="folder for readings and figures")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.model == "planted":
        handle, _ = sk.testing.planted_sink(0)
        rng = np.random.default_rng(0)
        ids = [[handle.config.bos_token_id, *rng.integers(3, 90, size=23).tolist()] for _ in range(8)]
        return given, handle, sk.Prompts.from_ids(ids, handle)
    handle = sk.load_model(given.model)
    text = resources.files("sinkscope.data").joinpath("demo_texts.txt").read_text(encoding="utf-8")
    texts = [part.strip() for part in text.split("\n\n") if part.strip()]
    return given, handle, sk.Prompts.from_texts(texts, handle)


def reading(path: Path, make: Any) -> xr.Dataset:
    """Open the saved reading, or make and save it: figures are always drawn from a file."""
    if not path.exists():
        sk.save(make(), path)
    return sk.open(path)


def finish(axes: plt.Axes, source: xr.DataArray | xr.Dataset, path: Path, definition: str) -> None:
    """Caption the figure (model, n, definition) and save it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    sk.plot.caption(figure, source, definition=definition)
    figure.savefig(path, dpi=150)  # type: ignore[union-attr]
    plt.close(figure)  # type: ignore[arg-type]
    print(f"Saved {path}")
