import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.metrics import (
    by_stage,
    debias,
    keep_frequency,
    modality_dominance,
    padding_patches,
    positional_trend,
)

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


def test_how_often_a_token_is_kept_has_a_steeper_trend_than_its_scores():
    rng = np.random.default_rng(0)
    mean = 0.02 * np.exp(0.8 * np.arange(40) / 40)
    scores = mean * rng.lognormal(0, 0.3, (400, 40))
    kept = keep_frequency(scores, 10)
    assert kept.sum() == pytest.approx(10)
    assert positional_trend(scores.mean(0)).sigma == pytest.approx(0.8, abs=0.1)
    assert positional_trend(kept).sigma > 1.5
    even = debias(scores, positional_trend(mean))
    assert abs(positional_trend(keep_frequency(even, 10)).sigma) < 0.3
    np.testing.assert_array_equal(keep_frequency([[1, 3, 3], [0, 0, 2]], 1), [0, 0.5, 0.5])
    with pytest.raises(MetricError, match=r"keep_frequency\(keep=4\): scores have shape \(1, 3\)"):
        keep_frequency([[1, 2, 3]], 4)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.01])
def test_valid_patches_are_the_sheets_vector(threshold):
    sizes = {(640, 480): 432, (640, 427): 384, (480, 640): 432, (500, 500): 576}
    for size, valid in sizes.items():
        assert int((~padding_patches(size, 24, 24, threshold)).sum()) == valid


def test_the_bars_of_a_squared_picture_are_padding():
    # 640 x 480 in 640 x 640: bars of 80 pixels, three of 24 rows (26.67 pixels each) above and below.
    found = padding_patches((640, 480), 24, 24)
    assert found[:3].all()
    assert found[21:].all()
    assert not found[3:21].any()
    assert not padding_patches((300, 300), 24, 24).any()
    upright = padding_patches((100, 200), 4, 8)
    np.testing.assert_array_equal(upright[0], [True, True, False, False, False, False, True, True])
    # Bars of 10 in 60 pixels cut patches of 15 at two thirds.
    assert padding_patches((60, 40), 4, 4, threshold=0.5)[0].all()
    assert not padding_patches((60, 40), 4, 4, threshold=0.7).any()
