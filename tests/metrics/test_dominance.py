import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.metrics import by_stage, debias, modality_dominance, positional_trend

from .readings import ATTRS


def reading(layers=1):
    """The sheet's row [.4, .1, .1, .1, .1, .2], text at 0 and 5; a second prompt has no image."""
    share = np.full((2, layers, 2, 2), np.nan)
    share[0] = [[0.5, 0.5], [0.7, 0.3]]  # two heads whose mean is .6, .4
    share[1] = [1.0, 0.0]
    return xr.Dataset(
        {"role_share": (("prompt", "layer", "head", "role"), share)},
        coords={
            "prompt": [0, 1], "layer": np.arange(layers), "head": [0, 1], "role": ["user", "image"],
            "token_role": (("prompt", "key"), [["user", *["image"] * 4, "user"], ["user", "user", "", "", "", ""]]),
        },
        attrs=ATTRS,
    )  # fmt: skip


def test_dominance_is_the_sheets_vector():
    found = modality_dominance(reading())
    assert found["mdi"].dims == ("prompt", "layer")
    np.testing.assert_allclose(found["mdi"][0], [3.0])
    np.testing.assert_allclose(found["aei_text"][0], [1.8])
    np.testing.assert_allclose(found["aei_other"][0], [0.6])
    q = 2 / 6
    np.testing.assert_allclose(found["aei_text"][0], found["mdi"][0] / (q * found["mdi"][0] + 1 - q))


def test_dominance_without_an_image_is_nan_and_counted():
    found = modality_dominance(reading())
    assert np.isnan(found["mdi"][1]).all()
    assert found.attrs["n"] == 1


def test_dominance_without_attention_to_the_image_is_infinite():
    ds = reading()
    ds["role_share"][0] = [1.0, 0.0]
    assert np.isinf(modality_dominance(ds)["mdi"][0]).all()


def test_dominance_errors():
    with pytest.raises(MetricError, match=r"none of the roles \['video'\] is in this reading, which holds \['user'"):
        modality_dominance(reading(), other="video")
    with pytest.raises(MetricError, match=r"needs 'role_share'.*Add RoleShare\(\)"):
        modality_dominance(reading().drop_vars("role_share"))


def test_stages_are_the_first_middle_and_last_two_layers():
    staged = by_stage(xr.DataArray(np.arange(8.0), dims="layer"))
    assert staged["stage"].values.tolist() == ["early", "middle", "late"]
    assert staged.values.tolist() == [0.5, 3.5, 6.5]
    with pytest.raises(MetricError, match="by_stage: two layers are needed"):
        by_stage(xr.DataArray([1.0], dims="layer"))


def test_positional_trend_recovers_its_curve():
    trend = positional_trend(0.7 * np.exp(1.3 * np.arange(50) / 50))
    np.testing.assert_allclose(trend, [0.7, 1.3, 1.0])


def test_debias_is_the_sheets_vector():
    trend = positional_trend([1, np.sqrt(2), 2, np.sqrt(8)])
    np.testing.assert_allclose(trend[:2], [1.0, np.log(4)])
    np.testing.assert_allclose(debias([0.1, 0.2, 0.3, 0.4], trend), [0.1, 0.141421, 0.15, 0.141421], atol=1e-6)


def test_trend_of_too_little_is_nan():
    assert np.isnan(positional_trend([0.0, 1.0])).all()
