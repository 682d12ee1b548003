"""A figure takes a reading, what a metric returned, or bare numbers; what it can't draw is an error that says why."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.testing import planted_sink


@pytest.fixture(scope="module")
def reading() -> xr.Dataset:
    model, _ = planted_sink(seed=0)
    rng = np.random.default_rng(0)
    first = int(model.config.bos_token_id)
    ids = [[first, *rng.integers(3, model.config.vocab_size, 15).tolist()] for _ in range(3)]
    probes = [
        sk.KeyMass(), sk.ValueNorm(), sk.MassiveActivations(top=3), sk.Entropy(), sk.RoleShare(), sk.ResidualNorm(),
        sk.MaxAttention(keys="all", queries="all"), sk.AttentionMap(layers=[1], heads=[2]),
    ]  # fmt: skip
    return sk.run(model, sk.Prompts.from_ids(ids, model), probes)


def colours(axes: plt.Axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_a_map_of_a_reading_is_that_of_its_first_token(reading: xr.Dataset) -> None:
    axes = plot.sink_map(reading)
    mean = reading["key_mass"].isel(key=0).mean("prompt").transpose("layer", "head").values
    np.testing.assert_allclose(colours(axes), mean)
    assert axes.get_title(loc="left") == "Attention on the first token"
    figure = axes.get_figure()
    assert figure is not None
    assert "n = 3 prompts" in figure.get_supxlabel()
    assert plot.sink_map(reading, title="mine").get_title(loc="left") == "mine"
    np.testing.assert_allclose(colours(plot.sink_map(mean)), mean)


def test_maps_of_entropy_and_of_one_head(reading: xr.Dataset) -> None:
    entropy = reading["entropy"].mean(["prompt", "query"]).transpose("layer", "head").values
    np.testing.assert_allclose(colours(plot.entropy_map(reading)), entropy)
    axes = plot.attention_map(reading)
    assert axes.get_title(loc="left") == "Layer 1, head 2"
    one = reading["attention"].isel(prompt=0).sel(layer=1, head=2).values
    np.testing.assert_allclose(np.tril(colours(axes)), np.tril(np.nan_to_num(one)))


@pytest.mark.parametrize(
    "draw",
    [
        plot.value_drain, plot.max_attention_histogram, plot.norm_profile, plot.top_values_by_layer,
        plot.role_share_by_layer, plot.massive_activations_picture,
    ],
    ids=lambda draw: draw.__name__,
)  # fmt: skip
def test_every_figure_of_a_reading_draws_it(reading: xr.Dataset, draw: object) -> None:
    axes = draw(reading)  # type: ignore[operator]
    assert axes.has_data()


def test_values_of_the_first_token_are_one_box_and_the_others_another(reading: xr.Dataset) -> None:
    whole = plot.value_drain(reading)
    norm = reading["value_norm"]
    apart = plot.value_drain(norm.isel(key=[0]), norm.isel(key=slice(1, None)))
    for one, other in zip(whole.lines, apart.lines, strict=True):
        np.testing.assert_allclose(one.get_ydata(), other.get_ydata())


def test_what_compare_found_is_drawn_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.normal(size=(8, 3)), dims=("prompt", "edit"), coords={"edit": ["none", "a", "b"]})
    found = sk.metrics.compare(values, to="none")
    axes = plot.effect_bars(found)
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, found["difference"].values)
    assert len(axes.containers) == 2  # the bars and their intervals
    heads = xr.DataArray(rng.normal(size=(8, 2, 3)) + 3, dims=("prompt", "layer", "head"))
    found = sk.metrics.compare(heads, to=heads * 0)
    axes = plot.effect_map(found)
    assert len(axes.collections[0].get_offsets()) == int((found["q_value"] < 0.05).sum()) > 0


def test_what_cannot_be_drawn_says_what_to_pass(reading: xr.Dataset) -> None:
    short = reading[["value_norm"]]
    with pytest.raises(SchemaError, match=re.escape("sink_map draws 'key_mass', which this reading lacks")) as raised:
        plot.sink_map(short)
    assert "Add KeyMass() to the probes, or pass an array." in str(raised.value)
    with pytest.raises(SchemaError, match=r"layer_profile: expected an array, got a Dataset\. Take one of its var"):
        plot.layer_profile(short)
    with pytest.raises(SchemaError, match=r"effect_bars: expected what metrics\.compare returns"):
        plot.effect_bars(short)
    with pytest.raises(SchemaError, match=r"sink_map: expected an xarray\.DataArray or a reading, got a ndarray of sh"):
        plot.sink_map(np.zeros(3))
    with pytest.raises(SchemaError, match="got a list"):
        plot.sink_map([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="value_drain: others are missing"):
        plot.value_drain(reading["value_norm"])
    with pytest.raises(SchemaError, match="top_values_by_layer: the median is missing"):
        plot.top_values_by_layer(reading["top_value"].mean("prompt"))
    several = xr.concat([reading["key_mass"]] * 2, "edit").to_dataset()
    with pytest.raises(SchemaError, match=r"Select one of 'edit' with \.isel"):
        plot.sink_map(several)


def test_captions_can_be_left_out(reading: xr.Dataset) -> None:
    with plot.theme("paper", captions=False):
        figure = plot.sink_map(reading).get_figure()
    assert figure is not None
    assert figure.get_supxlabel() == ""
    figure = plot.sink_map(reading).get_figure()
    assert figure is not None
    assert figure.get_supxlabel() != ""
