import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sinkscope.errors import SchemaError
from sinkscope.report import FIGURES, available, draw, pictures

OF_SURVEYS = (
    "sink_rate_map", "attention_by_position", "corpus_role_share", "sink_tokens", "value_norm_by_layer",
    "corpus_residual_norm", "corpus_top_values", "corpus_entropy_map",
)  # fmt: skip
ELSEWHERE = ("attention_map", "image_patches", *OF_SURVEYS)
"""Figures that need what the fake reading has not: stored maps, images, statistics of a corpus."""


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_all_figures_of_a_full_reading_are_available(reading):
    assert available(reading) == [name for name in FIGURES if name not in ELSEWHERE]


def test_available_follows_the_variables(reading):
    assert available(reading[["entropy", "residual_norm"]]) == ["residual_norm", "entropy_map"]


def test_sink_map_shows_the_sink(reading):
    ax = draw(reading, "sink_map")
    np.testing.assert_allclose(ax.images[0].get_array(), reading["key_mass"].isel(key=0).mean("prompt"), rtol=1e-5)


def test_profile_is_sink_against_others(reading):
    mass = reading["key_mass"].values
    sink, others = draw(reading, "sink_profile").lines
    np.testing.assert_allclose(sink.get_ydata(), mass[..., 0].mean(axis=(0, 2)), rtol=1e-5)
    expected = [[np.nanmean(mass[:, layer, head, 1:]) for head in range(12)] for layer in range(6)]
    np.testing.assert_allclose(others.get_ydata(), np.mean(expected, axis=1), rtol=1e-5)


def test_massive_picture_takes_the_largest_entry(reading):
    ax = draw(reading, "massive_activations")
    assert max(line.get_data_3d()[2][1] for line in ax.lines) == pytest.approx(float(abs(reading["top_value"]).max()))


def test_attention_map_takes_the_first_that_was_asked_for(reading):
    maps = np.full((3, 6, 12, 40, 40), np.nan, dtype="float32")
    maps[0, 4, 7] = np.tril(np.ones((40, 40))) / np.arange(1, 41)[:, None]
    ax = draw(reading.assign(attention=(("prompt", "layer", "head", "query", "key"), maps)), "attention_map")
    assert ax.get_title(loc="left") == "Layer 4, head 7"
    np.testing.assert_allclose(ax.images[0].get_array(), maps[0, 4, 7])


def test_patches_show_the_first_image(reading):
    row, column = np.full((3, 40), np.nan), np.full((3, 40), np.nan)
    row[1, 3:9], column[1, 3:9] = [0, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 1]
    coords = {"grid_row": (("prompt", "key"), row), "grid_col": (("prompt", "key"), column)}
    ax = draw(reading.assign_coords(coords), "image_patches")
    expected = reading["key_mass"].values[1, :, :, 3:7].mean(axis=(0, 1))
    np.testing.assert_allclose(ax.collections[0].get_array(), expected, rtol=1e-5)
    with pytest.raises(SchemaError, match=r"needs \['grid_row'\].*Measure prompts with images"):
        draw(reading, "image_patches")


def test_pictures_are_the_same_every_time(reading):
    names = ["sink_map", "massive_activations"]
    first, again = pictures(reading, names), pictures(reading, names)
    assert [p.svg for p in first] == [p.svg for p in again]
    assert first[0].svg.startswith(b"<?xml")
    assert "Model fake/six-layers; n = 3 prompts; mean attention on the first token “<s>”" in first[0].caption
    assert not plt.get_fignums(), "figures are closed"


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ELSEWHERE])
def test_every_figure_is_drawn_from_a_reading_with_one_token(reading, name):
    short = reading.isel(prompt=[0], key=[0], query=[0])
    assert pictures(short, [name])[0].svg.startswith(b"<?xml")


def test_unknown_figure(reading):
    with pytest.raises(
        SchemaError,
        match=r"figure 'sinkmap': there is no such figure. Use one of \['attention_by_position', 'attention_map'",
    ):
        draw(reading, "sinkmap")
    with pytest.raises(SchemaError, match=r"figure 'attention_map' needs \['attention'\].*Add AttentionMap\(layers"):
        draw(reading, "attention_map")
