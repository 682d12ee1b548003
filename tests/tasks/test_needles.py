"""Needle tests: where the needle stands, what is asked for, and that nothing else answers."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import PromptError
from sinkscope.tasks.needles import needle_tests


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


def test_the_needle_stands_once_and_its_cue_at_the_end(model):
    tests = needle_tests(model, 5, length=30, needle=4)
    assert tests.prompts.lengths == (30,) * 5
    starts = [start for start, _ in tests.spans]
    assert starts == sorted(starts)
    assert starts[0] < 10
    assert starts[-1] > 18
    for ids, (start, stop), answer in zip(tests.prompts.ids, tests.spans, tests.answers, strict=True):
        assert tuple(ids[start:stop]) == answer
        np.testing.assert_array_equal(ids[start - 1], ids[-1])
        assert not np.isin(ids[1 : start - 1], [*answer, ids[-1]]).any()
        assert not np.isin(ids[stop:-1], [*answer, ids[-1]]).any()
    whole = tests.answered(model)
    assert whole.ids[1].tolist() == [*tests.prompts.ids[1].tolist(), *tests.answers[1]]
    assert len(tests.subset([3, 1])) == 2
    assert tests.subset([3]).spans == (tests.spans[3],)


def test_it_may_be_hidden_in_a_text_of_ones_own(model):
    hay = [[5, 6, 7, 8, 9, 10]] * 2
    tests = needle_tests(model, 2, length=11, needle=2, haystacks=hay)
    for ids, (start, stop) in zip(tests.prompts.ids, tests.spans, strict=True):
        rest = [*ids[1 : start - 1], *ids[stop:-1]]
        assert rest == hay[0][: len(rest)]
        assert not np.isin(ids[start - 1 : stop], hay[0]).any()


def test_errors(model):
    with pytest.raises(PromptError, match=r"these leave 1 tokens of haystack"):
        needle_tests(model, 2, length=6, needle=2)
    with pytest.raises(PromptError, match=r"2 haystacks of 7 tokens are needed"):
        needle_tests(model, 2, length=12, needle=2, haystacks=[[5] * 7])
    with pytest.raises(PromptError, match=r"tokens do not stand in the haystack"):
        needle_tests(model, 1, length=110, needle=2, haystacks=[list(range(3, 110))])
