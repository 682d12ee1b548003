"""Norms, massive activations and phi, on vectors with known answers and on the residual stream of a model."""

import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ProbeError
from sinkscope.probes.residual import midpoint_median


def scene(real):
    return SimpleNamespace(batch=SimpleNamespace(real=torch.tensor(real)))


def test_massive_activations_rank_signed_entries_of_real_tokens():
    first = [[900.0, 0, 0, 0], [1, -7, 2, 0], [3, 0, 5, -4]]
    hidden = torch.tensor([first, [[1.0, 2, 3, -9], [0, 0, 8, 1], [6, 7, 0, 0]]])
    real = [[False, True, True], [True, True, True]]
    found = sk.MassiveActivations(top=3).at_site(hidden, scene(real))
    assert found["top_value"].tolist() == [[-7, 5, -4], [-9, 8, 7]]
    assert found["top_dim"].tolist() == [[1, 2, 3], [3, 2, 1]]
    assert found["top_position"].tolist() == [[0, 1, 1], [0, 1, 2]]  # counted from the first real token
    # magnitudes 0 0 1 2 3 4 5 7: mid-point of 2 and 3; second row 0 0 0 0 1 1 2 3 6 7 8 9: of 1 and 2
    assert found["median_abs"].tolist() == [2.5, 1.5]


def test_cosines_to_the_first_real_token_are_those_of_the_sheet():
    rows = [[1.0, 0], [1, 1], [0, 2], [-3, 0]]
    hidden = torch.tensor([rows, [[9.0, 9], *rows[:3]]])
    found = sk.BosCosine().at_site(hidden, scene([[True] * 4, [False, True, True, True]]))["bos_cosine"]
    np.testing.assert_allclose(found[0], [1, 0.707107, 0, -1], atol=1e-6)
    np.testing.assert_allclose(found[1, 1:], [1, 0.707107, 0], atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 50.0])
)
def test_massive_activations_equal_a_full_sort(tokens, width, top, seed, spike):
    hidden = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))
    hidden[0, seed % tokens, seed % width] += spike
    top = min(top, width)
    found = sk.MassiveActivations(top=top).at_site(hidden, scene([[True] * tokens]))
    value, dim, position, median = oracle.massive(hidden[0], top)
    assert found["top_value"][0].tolist() == pytest.approx(value.tolist())
    assert found["top_dim"][0].tolist() == dim.tolist()
    assert found["top_position"][0].tolist() == position.tolist()
    assert found["median_abs"][0].item() == pytest.approx(median, abs=1e-7)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 2, 3, 1000, (1 << 14) + 1, 40_000, 99_999]), st.integers(0, 10**6),
    st.sampled_from(["normal", "heavy", "sorted", "equal", "two values"]),
)  # fmt: skip
def test_the_median_is_exact_whatever_the_values(count, seed, kind):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=g).abs()
    if kind == "heavy":
        values = values.pow(-3)
    elif kind == "sorted":
        values = values.sort().values
    elif kind == "equal":
        values = torch.full((count,), 2.5)
    elif kind == "two values":
        values = (values > 0.7).float()
    assert midpoint_median(values).item() == pytest.approx(float(np.median(values.numpy().astype(float))), rel=1e-6)


def test_a_sample_that_misses_the_middle_falls_back_to_the_full_median():
    """Every fourth value is small and the sample sees only those."""
    values = torch.ones(1 << 15)
    values[:: (1 << 15) >> 13] = 0.0
    values[1] = 3.0
    assert midpoint_median(values).item() == 1.0


def test_phi_of_known_vectors():
    hidden = torch.tensor([[[3.0, -4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
    whole = sk.SinkDims().at_site(hidden, scene([[True] * 3]))["phi"]
    assert whole[0].tolist() == pytest.approx([4 / 2.5, 0.0, 1.0], rel=1e-6)
    some = sk.SinkDims(dims=(0, 2)).at_site(hidden, scene([[True] * 3]))["phi"]
    assert some[0].tolist() == pytest.approx([3 / 2.5, 0.0, 1.0], rel=1e-6)
    tiny = sk.SinkDims().at_site(torch.full((1, 1, 4), 1e-3), scene([[True]]))["phi"]
    assert tiny.item() == pytest.approx(1e-3 / math.sqrt(2e-6), rel=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 16), st.integers(0, 10**6))
def test_phi_never_exceeds_the_square_root_of_the_width(width, seed):
    hidden = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(seed)) * 100
    hidden[0, 0] = 0
    hidden[0, 0, 0] = 1e4
    found = sk.SinkDims().at_site(hidden, scene([[True] * 5]))["phi"]
    assert (found <= math.sqrt(width) * (1 + 1e-5)).all()
    assert found[0, 0].item() == pytest.approx(math.sqrt(width), rel=1e-5)


def test_sites_of_a_reading_are_labelled_by_both_names():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 7]], model)
    reading = sk.run(model, prompts, [sk.ResidualNorm(), sk.MassiveActivations(top=4), sk.SinkDims()], batch_size=2)
    assert reading.site.values.tolist() == ["embed", "0.mid", "0.post", "1.mid", "1.post", "2.mid", "2.post"]
    assert reading.site_name.values.tolist()[:3] == [
        "blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post",
    ]  # fmt: skip
    for name, dims in {
        "residual_norm": ("prompt", "site", "key"), "top_value": ("prompt", "site", "rank"),
        "median_abs": ("prompt", "site"), "phi": ("prompt", "site", "key"),
    }.items():  # fmt: skip
        assert reading[name].dims == dims
    assert np.isnan(reading.residual_norm[1, :, 2:]).all()
    embedding = model.model.model.embed_tokens.weight[[1, 5, 6]].detach().norm(dim=-1)
    np.testing.assert_allclose(reading.residual_norm[0].sel(site="embed"), embedding, rtol=1e-6)


def test_the_last_site_is_before_the_final_norm():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6]], model)
    found = sk.run(model, prompts, [sk.ResidualNorm()]).residual_norm[0].sel(site="2.post")
    with torch.no_grad():
        last = model.model.model(torch.tensor([[1, 5, 6]]), output_hidden_states=True).hidden_states[-1]
    assert not np.allclose(found, last[0].norm(dim=-1), rtol=1e-2)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (sk.MassiveActivations(top=0), r"MassiveActivations\(top=0\): top must be from 1 to the width 32\."),
        (sk.MassiveActivations(top=33), r"MassiveActivations\(top=33\): top must be from 1 to the width 32\."),
        (sk.SinkDims(dims=[2, 32]), r"SinkDims\(dims=\[2, 32\]\): the residual stream has dimensions 0\.\.31\. Name"),
        (sk.SinkDims(dims=[-1]), r"SinkDims\(dims=\[-1\]\): the residual stream has dimensions 0\.\.31\."),
        (sk.SinkDims(dims=[]), r"SinkDims\(dims=\[\]\): .* Name dimensions in that range, or None for all\."),
    ],
)
def test_dimensions_that_are_not_there_are_refused(probe, message):
    model = sk.load_model(testing.tiny("llama"))
    with pytest.raises(ProbeError, match=message):
        sk.run(model, sk.Prompts.from_ids([[1, 5]], model), [probe])


def test_a_single_dimension_needs_no_list():
    assert sk.SinkDims(dims=3) == sk.SinkDims(dims=[3, 3])


def test_the_sample_sees_every_dimension_of_the_stream(monkeypatch):
    """Dimensions of trained models differ in size: a stride that divides the width would sample a few of them."""
    generator = torch.Generator().manual_seed(0)
    for tokens, width in ((1024, 576), (2048, 512), (1024, 640)):
        size = torch.randn(width, generator=generator).mul(1.5).exp()
        values = (torch.randn(tokens, width, generator=generator) * size).abs().flatten()
        expected = float(np.median(values.numpy()))

        def whole(numbers, *_, **__):
            raise AssertionError("the bracket missed, all values were ranked")

        with monkeypatch.context() as patched:
            patched.setattr("sinkscope.probes.residual.np.median", whole)
            assert midpoint_median(values).item() == expected
