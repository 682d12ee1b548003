import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from sinkscope import metrics, probes
from sinkscope.errors import MetricError
from sinkscope.metrics.base import exact, masked, mean_over, plain, probe_for, real_tokens

from .readings import from_maps, random_maps


def test_metrics_import_without_torch():
    code = "import sys, sinkscope.metrics, sinkscope.definitions; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented():
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__, name


def test_every_variable_has_a_probe_to_name():
    made = {name: cls for cls in map(probes.__dict__.get, probes.__all__) for name in cls.variables}
    assert len(made) == 27
    for name, cls in made.items():
        assert probe_for(name).startswith(f"{cls.__name__}(")
    assert probe_for("max_attention") == "MaxAttention()"
    assert probe_for("attention") == "AttentionMap(layers=[...], heads=[...])"
    assert probe_for("mine") == "the probe that makes 'mine'"


def test_mean_over_nothing_is_nan_with_n_0():
    values = xr.DataArray([[1.0, np.nan], [np.nan, np.nan]], dims=("layer", "head"))
    mean = mean_over(values, ["head"])
    assert float(mean[0]) == 1.0
    assert np.isnan(mean[1])
    assert mean["n"].values.tolist() == [1, 0]


def test_real_tokens_know_where_a_prompt_ends():
    real = real_tokens(from_maps(random_maps((12, 8, 5))), "test")
    assert real.sum("key").values.tolist() == [12, 8, 5]


def test_masks_are_joined_exactly():
    values = xr.DataArray([1.0, 2.0, 3.0], dims="layer", coords={"layer": [0, 1, 2]})

    @exact
    def metric():
        return masked(values, xr.DataArray([True, True], dims="layer", coords={"layer": [0, 1]}))

    with pytest.raises(MetricError, match=r"metric: the labels of the inputs differ .*Select the same prompts"):
        metric()


def test_attributes_are_plain():
    assert [plain(v) for v in (True, 2, 0.5, "a", None, [1])] == [1, 2, 0.5, "a", "None", "[1]"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "a", True])
@pytest.mark.parametrize(("name", "parameter"), [
    ("sink_rate", "epsilon"), ("sink_mask", "threshold"), ("phi_sinks", "tau"), ("massive_activations", "factor"),
])  # fmt: skip
def test_what_is_no_finite_number_is_refused_before_anything_is_compared_with_it(name, parameter, wrong):
    reading = from_maps(random_maps())
    with pytest.raises(MetricError, match=rf"{name}\({parameter}={wrong!r}\): give a finite number\."):
        getattr(metrics, name)(reading, **{parameter: wrong})


@pytest.mark.parametrize("wrong", [1.5, "a", False])
def test_a_position_is_a_whole_number(wrong):
    with pytest.raises(MetricError, match=r"sink_rate\(position=.*\): give a whole number\."):
        metrics.sink_rate(from_maps(random_maps()), position=wrong)
