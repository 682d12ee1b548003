"""Random bands of the analyses: which tokens are drawn, and what the band of a control shows."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import add_random_bands, random_tokens
from sinkscope.errors import MetricError
from sinkscope.testing import tiny


@pytest.fixture(scope="module")
def model():
    return sk.load_model(tiny("llama"))


def test_one_token_of_each_prompt_is_drawn_never_the_first_and_never_padding(model):
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7, 8, 9], [1, 5]], model)
    draws = random_tokens(prompts, 20)
    for drawn in draws:
        assert drawn.dims == ("prompt", "key")
        assert drawn.sum("key").values.tolist() == [1, 1]
        assert not drawn.isel(key=0).any()
        assert drawn.values[1].tolist() == [False, True, False, False, False, False]
    assert len({int(drawn.values[0].argmax()) for drawn in draws}) > 1
    again = random_tokens(prompts, 2)
    assert all(np.array_equal(one, other) for one, other in zip(draws, again, strict=False))
    sk.run(model, prompts, [sk.TokenLoss()], [sk.ScaleKeys(0.1, keys=draws[0])])


def test_a_prompt_of_one_token_has_none_to_draw(model):
    with pytest.raises(MetricError, match="only 0 other tokens"):
        random_tokens(sk.Prompts.from_ids([[1]], model), 1)


def test_a_control_is_the_mean_of_its_draws_between_the_least_and_the_largest():
    lines = xr.DataArray([[1.0, 2.0]], dims=("arm", "gamma"), coords={"arm": ["first"], "gamma": [0.5, 2.0]})
    draws = xr.DataArray([[0.0, 3.0], [1.0, 6.0]], dims=("draw", "gamma"), coords={"gamma": [0.5, 2.0]})
    middle, (low, high) = add_random_bands(lines, (lines - 1, lines + 1), {"random token": draws}, "arm")
    assert middle["arm"].values.tolist() == ["first", "random token"]
    assert middle.sel(arm="random token").values.tolist() == [0.5, 4.5]
    assert low.sel(arm="random token").values.tolist() == [0.0, 3.0]
    assert high.sel(arm="random token").values.tolist() == [1.0, 6.0]
    assert low.sel(arm="first").values.tolist() == [0.0, 1.0]
    assert middle.dims == low.dims == high.dims
