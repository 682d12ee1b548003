"""Attention taken apart: the copying head of a planted model needs its own map, and nothing of it survives without."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.methods.principles import REPLACEMENTS, maps_of, replaced_attention
from sinkscope.testing import planted_induction


@pytest.fixture(scope="module")
def case():
    """Two texts that say eight tokens twice: the second time each can be copied."""
    model, truth = planted_induction(1)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.arange(5, 60))[:8].tolist() for _ in range(2)]
    return model, truth, sk.Prompts.from_ids([[model.config.bos_token_id, *row, *row] for row in rows], model)


def copied(model, prompts, edits=()):
    """Share of the second saying that is predicted."""
    logits = sk.run(model, prompts, [sk.Logits(positions="all")], edits)["logits"]
    return float((logits[0, 9:-1].argmax("vocab") == np.asarray(prompts.ids[0])[10:]).mean())


def test_copying_is_lost_without_mixing_and_without_the_layers_own_state(case):
    model, _, prompts = case
    edits = replaced_attention(model, prompts, 0, 1)
    assert list(edits) == list(REPLACEMENTS)
    one = prompts.subset([0])
    assert copied(model, one) == 1
    found = {name: copied(model, one, each) for name, each in edits.items()}
    assert found["no mixing"] == 0
    # What a head looks for is written by the block before it: embeddings do not hold it.
    assert max(found["static embeddings"], found["random embeddings"]) < 0.3
    # The other text repeats at the same distance, so its map copies as well: the control.
    assert found["fixed sequence"] == 1


def test_static_maps_of_the_first_layer_are_its_own_and_of_the_second_are_not(case):
    model, truth, prompts = case
    own, static = (maps_of(model, prompts.subset([0]), static=static) for static in (False, True))
    np.testing.assert_allclose(static[0], own[0], atol=1e-6)
    layer, head = truth.induction
    assert np.abs(static[layer, head] - own[layer, head]).max() > 0.5


def test_what_cannot_be_is_said(case):
    model, _, prompts = case
    with pytest.raises(PromptError, match=r"maps_of: 2 prompts were given\. Give one"):
        maps_of(model, prompts)
    with pytest.raises(PromptError, match=r"replaced_attention\(index=0, other=0\): the fixed sequence must be anothe"):
        replaced_attention(model, prompts, 0, 0)
