"""Key figures look as they did: each is drawn from fixed numbers and compared with the picture that was looked at.

``python tests/plot/test_baseline.py`` draws the pictures in ``baseline/`` anew; look at them before you keep them.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.testing.compare import compare_images

from sinkscope import plot

BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 8.0
RNG = np.random.default_rng(7)
TOKENS = ["The", " ferry", " left", " the", " harbour", " at", " six", ",", " while", " lamps", "\n", "."]


def heads(low: float = 0.0, layers: int = 30, heads: int = 9) -> xr.DataArray:
    values = np.clip(np.linspace(low, 0.8, layers)[:, None] + RNG.normal(0, 0.2, (layers, heads)), -1, 1)
    return xr.DataArray(
        values, dims=("layer", "head"), attrs={"model_id": "model", "n_prompts": 24, "definition": "fixed"}
    )


def sink_map() -> Any:
    return plot.sink_map(heads().clip(0))


def sink_map_of_a_large_model() -> Any:
    return plot.sink_map(heads(layers=80, heads=64).clip(0))


def effect_map() -> Any:
    effect = heads(-0.8, 12, 12).rename("effect").assign_attrs(units="nat")
    return plot.effect_map(effect, marked=abs(effect) > 0.6)


def head_class_map() -> Any:
    grid = heads(layers=12, heads=12)
    return plot.head_class_map(xr.where(grid > 0.5, "sink", xr.where(grid > 0.2, "vision", "")))


def attention_map() -> Any:
    weights = np.tril(RNG.dirichlet(np.ones(12), 12)) + 1e-3
    weights[:, 0] += 0.8
    weights = np.tril(weights / np.tril(weights).sum(1, keepdims=True))
    return plot.attention_map(xr.DataArray(weights, dims=("query", "key"), coords={"token": ("key", TOKENS)}))


def value_drain() -> Any:
    sink = xr.DataArray(RNG.gamma(4, 0.1, (12, 40)), dims=("layer", "n"))
    return plot.value_drain(sink, xr.DataArray(RNG.gamma(9, 0.2, (12, 200)), dims=("layer", "n")))


def max_attention_histogram() -> Any:
    values = np.concatenate([RNG.normal(0.2, 0.06, 400), RNG.normal(0.7, 0.08, 150)])
    fit = {"means": [0.2, 0.7], "sds": [0.06, 0.08], "weights": [0.73, 0.27], "valley": 0.47, "bimodal": True}
    return plot.max_attention_histogram(xr.DataArray(values, dims="case", name="largest attention"), fit)


def effect_bars() -> Any:
    edits = ["dim 507 to zero", "masked late", "masked everywhere", "control"]
    effect = xr.DataArray([9.7, 0.7, 0.3, 0.01], dims="edit", coords={"edit": edits}, name="change of the loss")
    return plot.effect_bars(effect, interval=(effect - 0.3, effect + 0.4), controls=effect * 0 + 0.05)


def sweep_curve() -> Any:
    gamma = np.array([0.0, 0.25, 0.5, 1.0, 2.0])
    curve = xr.DataArray(
        np.stack([(gamma - 1) ** 2, 0.3 * (gamma - 1) ** 2]), dims=("group", "gamma"), name="change of the loss",
        coords={"group": ["early", "random token"], "gamma": gamma},
    )  # fmt: skip
    return plot.sweep_curve(curve, interval=(curve - 0.05, curve + 0.05), title="First token scaled")


def top_values_by_layer() -> Any:
    depth = np.concatenate([np.full(3, 20.0), np.full(24, 2e4), np.full(3, 900.0)])
    top = xr.DataArray(depth[:, None] / [1, 4, 30], dims=("layer", "rank"))
    return plot.top_values_by_layer(top, xr.DataArray(np.full(30, 0.9), dims="layer"))


def massive_activations_picture() -> Any:
    ds = xr.Dataset(
        {
            "top_value": ("rank", [2200.0, -1400.0, 310.0]), "top_dim": ("rank", [507, 138, 507]),
            "top_position": ("rank", [0, 0, 7]), "median_abs": ((), 0.9),
        },
        coords={"token": ("key", TOKENS)}, attrs={"d_model": 576, "model_id": "model"},
    )  # fmt: skip
    return plot.massive_activations_picture(ds, title="Largest activations at 11.post")


def activation_surface() -> Any:
    sizes = np.abs(RNG.standard_t(4, (9, 96)))
    sizes[0, 50], sizes[0, 13] = 22000, 1700
    surface = xr.DataArray(sizes, dims=("key", "dim"), coords={"token": ("key", TOKENS[:9])})
    return plot.activation_surface(surface, named=[50, 13], title="11.post")


def phi_vs_attention() -> Any:
    roles = np.where(RNG.random(400) < 0.2, "shape", "background")
    phi = np.where(RNG.random(400) < 0.3, RNG.normal(14, 1.3, 400), RNG.gamma(2, 0.5, 400))
    points = xr.DataArray(phi, dims="key", coords={"token_role": ("key", roles)})
    return plot.phi_vs_attention(points, xr.DataArray(phi**2 * RNG.random(400) / 4000, dims="key"), threshold=20)


def patch_overlay() -> Any:
    rows, columns = np.divmod(np.arange(64), 8)
    place = {"grid_row": ("key", rows.astype(float)), "grid_col": ("key", columns.astype(float))}
    weights = xr.DataArray(np.linspace(0, 1, 64) ** 6, dims="key", coords=place, name="attention weight")
    picture = np.full((64, 64, 3), 230, dtype=np.uint8)
    picture[20:40, 10:30] = (80, 120, 200)
    axes = plot.patch_overlay(picture, weights, title="What is blue?")
    return plot.mark_patches({"top": np.array([[56, 56, 64, 64.0]]), "sinks": np.array([[0, 0, 8, 8.0]])}, ax=axes)


def panels() -> Any:
    grids = {f"model {i}": heads(layers=12, heads=8).clip(0) for i in range(3)}
    return plot.panels(plot.sink_map, grids, columns=3)[0]


FIGURES: tuple[Callable[[], Any], ...] = (
    sink_map, sink_map_of_a_large_model, effect_map, head_class_map, attention_map, value_drain,
    max_attention_histogram, effect_bars, sweep_curve, top_values_by_layer, massive_activations_picture, patch_overlay,
    panels, activation_surface, phi_vs_attention,
)  # fmt: skip


def save(draw: Callable[[], Any], folder: Path) -> Path:
    global RNG
    RNG = np.random.default_rng(7)
    with plot.theme("paper"):
        figure = draw().get_figure(root=True)
        path = folder / f"{draw.__name__}.png"
        figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close("all")
    return path


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_it_looks_as_it_did(draw: Callable[[], Any], tmp_path: Path) -> None:
    drawn = save(draw, tmp_path)
    assert compare_images(str(BASELINE / drawn.name), str(drawn), tol=TOLERANCE) is None


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    for each in FIGURES:
        sys.stdout.write(f"{save(each, BASELINE)}\n")
