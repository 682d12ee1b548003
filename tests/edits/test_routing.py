"""Routed heads where the truth is known: a planted copying head is kept by its query, and lost where that is short.

The control is the same function: queries of every head divided and keys multiplied by one number leave all maps as they
were, and only the order of the norms, which the router reads, is another.
"""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.testing import planted_induction


def build(gain):
    """The planted model, the planted heads' queries times ``gain`` and their keys over it; the same function."""
    model, truth = planted_induction(1)
    with torch.no_grad():
        for layer, head in (truth.previous, truth.induction):
            attention = model.model.model.layers[layer].self_attn
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            attention.q_proj.weight[rows] *= gain
            attention.k_proj.weight[rows] /= gain
    row = np.random.default_rng(0).permutation(np.arange(5, 60))[:8].tolist()
    return model, truth, sk.Prompts.from_ids([[model.config.bos_token_id, *row, *row]], model)


def copied(model, prompts, edits=()):
    logits = sk.run(model, prompts, [sk.Logits(positions="all")], edits)["logits"]
    return float((logits[0, 9:-1].argmax("vocab") == np.asarray(prompts.ids[0])[10:]).mean())


@pytest.mark.parametrize(("gain", "kept"), [(1.0, 1.0), (1e-4, 0.0)])
def test_one_head_of_four_copies_when_its_query_is_the_longest_and_not_when_it_is_the_shortest(gain, kept):
    model, truth, prompts = build(gain)
    assert copied(model, prompts) == 1
    assert copied(model, prompts, [sk.RouteHeads(1)]) == kept
    assert copied(model, prompts, [sk.RouteHeads(3)]) == kept
    shared = (
        sk.RouteHeads(0, shared=[truth.previous[1]], layers=0),
        sk.RouteHeads(0, shared=[truth.induction[1]], layers=1),
    )
    assert copied(model, prompts, shared) == 1, "shared heads are kept whatever their query"
