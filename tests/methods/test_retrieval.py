"""Needles: a planted head that copies is found, its loss is seen, and the twin copies nothing."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.methods.retrieval import THRESHOLD, knock_out, retrieval_heads, strongest
from sinkscope.tasks.needles import needle_tests
from sinkscope.testing import planted_induction


@pytest.fixture(scope="module")
def case():
    model, truth = planted_induction(1)
    tests = needle_tests(model, 6, length=60, needle=5)
    return model, truth, tests, retrieval_heads(model, tests)


def test_the_planted_head_and_no_other_retrieves(case):
    _, truth, tests, found = case
    high = np.argwhere(found["score"].values >= THRESHOLD)
    assert [tuple(place) for place in high.tolist()] == [truth.induction]
    assert found["score"].values[truth.induction] == 1
    assert found["released"].values[truth.induction] >= 1
    assert (found["recall"] == 1).all()
    assert found.attrs["n"] == len(tests)
    assert found["score_by_test"].dims == ("prompt", "layer", "head")
    assert np.allclose(found["score_by_test"].mean("prompt"), found["score"])


def test_the_twin_copies_nothing_and_no_score_is_made_up():
    twin, truth = planted_induction(1, shuffled=True)
    found = retrieval_heads(twin, needle_tests(twin, 3, length=40, needle=5))
    assert truth.induction is None
    assert found.attrs["n"] == 0
    assert np.isnan(found["score"]).all()


def test_without_the_head_the_needle_is_gone_and_without_another_it_is_not(case):
    model, truth, tests, found = case
    lost = knock_out(model, tests, found["score"], [1], draws=2)
    np.testing.assert_array_equal(lost["retrieval"].mean("prompt"), [1, 0])
    others = lost["random"].sel(removed=1).mean("prompt")
    # Of the others the head that looks one token back is needed as well.
    assert (others > 0.9).any()
    assert lost["retrieval"].dims == ("removed", "prompt")
    assert strongest(found["score"], 1).values[truth.induction]


def test_errors(case):
    model, _, tests, found = case
    with pytest.raises(PromptError, match=r"counts of at most half the heads"):
        knock_out(model, tests, found["score"], [5])
    with pytest.raises(PromptError, match=r"needles of \[5\] tokens, 8 heads"):
        knock_out(model, tests, xr.zeros_like(found["score"]), [0])
    assert isinstance(tests.answered(model), sk.Prompts)
