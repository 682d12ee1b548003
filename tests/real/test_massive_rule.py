"""The relative rule names the dimensions that are massive in pretrained models, and none in their random twins.

Its constants were chosen on SmolLM2, MiniLM, the planted model and twins of these; Gemma and ``zoo:lm-python`` had no
part in the choice (docs/decisions.md).
"""

import copy

import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.analysis.texts import token_rows

CHOSEN_ON = {"smollm2-135m": [507, 247, 14, 100, 260], "minilm": [99]}
NOT_USED = {"gemma3-270m": [163, 400], "zoo:lm-python": [77, 46, 51]}
"""Dimensions by model, the largest first."""


def massive(model):
    """Dimensions that the rule finds on eight texts of 64 tokens, by size."""
    prompts = sk.Prompts.from_ids(token_rows(model, "prose", 8, 64, 0), model)
    ds = sk.run(model, prompts, [sk.MassiveActivations()], batch_size=8)
    return list(dict.fromkeys(sk.metrics.massive_stages(ds)["dim"].values.tolist()))


def twin(model, how):
    """The same network with normal weights, or with the rows and columns of each weight in another order."""
    network, draw = copy.deepcopy(model.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if how == "random" and weight.ndim > 1:
                weight.normal_(0, 0.02, generator=draw)
            for axis in range(weight.ndim if how == "shuffled" else 0):
                weight.copy_(weight.index_select(axis, torch.randperm(weight.shape[axis], generator=draw)))
    return sk.load_model(network, tokenizer=model.tokenizer)


@pytest.fixture(scope="module", params=[*CHOSEN_ON, *NOT_USED])
def model(request, need):
    name = request.param
    return name, sk.load_model(name if name.startswith("zoo:") else need(name))


def test_what_is_there_is_found_and_nothing_else(model):
    name, loaded = model
    assert massive(loaded) == (CHOSEN_ON | NOT_USED)[name]


@pytest.mark.parametrize("how", ["random", "shuffled"])
def test_nothing_is_found_in_a_twin(model, how):
    assert massive(twin(model[1], how)) == []


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_planted_dimension_is_found_and_none_in_its_twin(shuffled):
    planted, truth = testing.planted_sink(0, shuffled=shuffled)
    ids = testing.text_ids(planted.model, batch=8, length=64, seed=50)
    ds = sk.run(planted, sk.Prompts.from_ids(ids.tolist(), planted), [sk.MassiveActivations()])
    assert set(sk.metrics.massive_stages(ds)["dim"].values.tolist()) == (set() if shuffled else set(truth.dims))
