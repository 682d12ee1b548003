"""LocoRE: the last generated words get more, the prompt what is left, and the first step is as it was."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.generation import extended
from sinkscope.errors import EditError


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7], [1, 8, 9]], model)
    return model, prompts, extended(prompts, [np.array([10, 11, 12]), np.array([13, 14, 15])], model)


@pytest.mark.parametrize("renormalise", [True, False])
def test_weights_are_those_of_the_formula(case, renormalise):
    model, _, written = case
    probe = [sk.AttentionMap([0], range(4))]
    plain = sk.run(model, written, probe, batch_size=2).attention
    edit = sk.BoostRecent(0.5, window=2, renormalise=renormalise, layers=[0])
    found = sk.run(model, written, probe, [edit], batch_size=2).attention
    for row, start in enumerate((4, 3)):
        n = start + 3
        wanted = plain.values[row, 0, :, :n, :n].astype(np.float64)
        factor = np.ones((n, n))
        for query in range(n):
            for key in range(start, n):
                factor[query, key] = 1.5 if 0 <= query - key < 2 else 1.0
        wanted = wanted * factor
        if renormalise:
            wanted = wanted / wanted.sum(-1, keepdims=True)
        np.testing.assert_allclose(found.values[row, 0, :, :n, :n], wanted, atol=1e-6)


def test_it_acts_while_writing_and_on_nothing_before(case):
    model, prompts, written = case
    logits = [sk.run(model, prompts, [sk.Logits()], edits).logits for edits in ((), [sk.BoostRecent(1.0)])]
    np.testing.assert_allclose(*logits, atol=1e-6)
    steps = [sk.generate(model, prompts, edits, max_new_tokens=6) for edits in ((), [sk.BoostRecent(9.0)])]
    by_run = sk.run(model, steps[1], [sk.Logits(positions="all")], [sk.BoostRecent(9.0)]).logits
    for row, start in enumerate(prompts.lengths):
        ids = steps[1].ids[row]
        assert steps[0].ids[row][start] == ids[start]
        # What each step chose, with its cache, is what one pass over the whole chooses.
        wanted = by_run.values[row, start - 1 : len(ids) - 1].argmax(-1)
        np.testing.assert_array_equal(ids[start:], wanted)
    assert sk.BoostRecent(0.0).identity
    assert len(written) == 2


def test_errors():
    with pytest.raises(EditError, match=r"window must be a whole number of at least 1"):
        sk.BoostRecent(0.1, window=0)
    with pytest.raises(EditError, match=r"beta"):
        sk.BoostRecent(-2)
