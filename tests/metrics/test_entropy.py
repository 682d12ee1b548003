import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sinkscope.errors import MetricError
from sinkscope.metrics import entropy_summary, entropy_without, non_vision_entropy, row_entropy

from .readings import A5, entropy, from_maps, random_maps, with_edits, with_max_attention


def without_key0(rows):
    rest = rows[:, 1:]
    kept = rest.sum(-1) > 0
    return entropy(rest[kept] / rest[kept].sum(-1, keepdims=True))


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=12), st.floats(0.1, 1.0))
def test_entropy_without_is_the_entropy_of_the_renormalised_rest(weights, total):
    row = np.array(weights) / np.sum(weights) * total
    rest = row[1:] / row[1:].sum()
    np.testing.assert_allclose(entropy_without(entropy(row), row[0], total, min_rest=1e-9), entropy(rest), atol=1e-7)


def test_entropy_without_is_nan_where_the_sink_has_all():
    assert np.isnan(entropy_without(0.0, 1.0))
    assert np.isnan(entropy_without(0.001, 0.99995))
    assert float(entropy_without(np.log(2), 0.5)) == pytest.approx(0.0)


def test_summary_from_the_map_equals_the_direct_sum():
    ds = from_maps([A5[None, None]])
    found = entropy_summary(ds)
    np.testing.assert_allclose(found["entropy"], [[entropy(A5).mean()]], rtol=1e-6)
    np.testing.assert_allclose(found["entropy_without_sink"], [[without_key0(A5).mean()]], rtol=1e-5)
    np.testing.assert_allclose(found["sink_share"], [[A5[:, 0].mean()]], rtol=1e-6)
    assert found["n"].item() == 5
    assert found["n_without"].item() == 4, "row 0 sees the sink alone"
    assert found["entropy"].attrs["units"] == "nat"


def test_summary_from_the_largest_weight_on_the_first_token_equals_that_from_the_map():
    ds = from_maps(random_maps())
    by_map = entropy_summary(ds)
    by_max = entropy_summary(with_max_attention(ds).drop_vars("attention"))
    xr.testing.assert_allclose(by_map, by_max)
    by_role = entropy_summary(with_max_attention(ds).drop_vars("attention"), "bos")
    np.testing.assert_allclose(by_role["entropy_without_sink"], by_max["entropy_without_sink"])


def test_summary_by_a_given_share_and_with_edits():
    ds = with_edits(from_maps(random_maps()))
    share = ds["attention"].isel(key=2)
    found = entropy_summary(ds.drop_vars("attention"), 2, share=share)
    assert found["entropy"].dims == ("edit", "layer", "head")
    row = ds["attention"].values[0, 1, 2, 3]  # (query, key) of prompt 1 of 8 tokens
    rows = row[:8, :8].astype(float)
    one = entropy_summary(ds, 2, over=("query",))["entropy_without_sink"].values[0, 1, 2, 3]
    rest = np.delete(rows, 2, axis=1)
    np.testing.assert_allclose(one, entropy(rest / rest.sum(-1, keepdims=True)).mean(), rtol=1e-4)


def test_summary_heeds_row_sums_below_one():
    ds = from_maps([0.5 * A5[None, None]])
    np.testing.assert_allclose(entropy_summary(ds)["entropy_without_sink"], [[without_key0(A5).mean()]], rtol=1e-5)


def test_summary_refuses_a_mean_over_queries_and_names_the_probe():
    ds = from_maps(random_maps()).drop_vars("attention")
    with pytest.raises(
        MetricError, match=r"a mean over queries cannot serve\. Add MaxAttention\(keys='bos', queries='all'\)"
    ):
        entropy_summary(ds)


def test_summary_does_not_take_the_largest_of_many_tokens_for_the_sink():
    ds = with_max_attention(from_maps(random_maps()), role="text").drop_vars("attention")
    with pytest.raises(MetricError, match="entropy_summary needs the attention each query gives the sink"):
        entropy_summary(ds)


def test_row_entropy_is_the_papers_vector():
    ds = from_maps([A5[None, None]])
    rows = row_entropy(ds, over="prompt")
    np.testing.assert_allclose(rows[0, 0], [0, 0.721928, 0.817345, 0.789195, 0.784662], atol=1e-6)
    assert row_entropy(ds).item() == pytest.approx(0.622626, abs=1e-6)


def test_row_entropy_of_an_encoder_uses_the_prompts_length():
    maps = [np.full((1, 1, t, t), 1 / t) for t in (6, 3)]
    ds = from_maps(maps, causal=False)
    np.testing.assert_allclose(row_entropy(ds), [[1.0]], rtol=1e-6)
    with pytest.raises(MetricError, match="row_entropy needs the attribute 'causal'"):
        row_entropy(ds.assign_attrs({}).drop_attrs())


def test_non_vision_entropy_is_the_sheets_vector():
    rows = np.array([[0.5, 0.1, 0.1, 0.2, 0.1], [0.1, 0.1, 0.1, 0.4, 0.3]])
    full = np.zeros((1, 1, 5, 5))
    full[0, 0, 3:] = rows
    ds = from_maps([full], roles=[["bos", "image", "image", "user", "user"]], causal=False)
    found = non_vision_entropy(ds, queries="user")
    assert found.dims == ("prompt", "layer", "head")
    assert float(found[0, 0, 0]) == pytest.approx(1.082196, abs=1e-6)


def test_non_vision_entropy_needs_the_map():
    with pytest.raises(MetricError, match=r"Add AttentionMap\(layers=\[\.\.\.\], heads=\[\.\.\.\]\)"):
        non_vision_entropy(from_maps(random_maps()).drop_vars("attention"))
