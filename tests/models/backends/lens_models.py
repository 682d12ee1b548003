"""Tiny models and their bridges for the tests of the TransformerLens backend, each built once."""

from functools import cache

import numpy as np
import torch
import transformers

from sinkscope.models.backends.lens import to_bridge
from sinkscope.models.handle import load_model
from sinkscope.prompts import Prompts
from sinkscope.testing import tiny

LISTS = ([1, *range(3, 14)], [1, *range(20, 27)], [1, 9, 33])
"""Token ids of different lengths: run together, two of the three are padded."""


@cache
def model(name):
    return load_model(tiny(name))


@cache
def bridge(name):
    return to_bridge(tiny(name))


@cache
def bridged(name):
    """The model as people who hold a bridge have it."""
    return load_model(bridge(name))


@cache
def prompts(name):
    return Prompts.from_ids(LISTS, bridged(name))


@cache
def eager(name):
    """The library's own model on its eager path, where set_attn_implementation does not always lead."""
    own = tiny(name)
    reference = getattr(transformers, type(own).__name__)._from_config(own.config, attn_implementation="eager")
    reference.load_state_dict(own.state_dict())
    return reference.eval()


def differences(first, second):
    """Largest difference of every variable two readings share; infinite where one has NaN and the other a number."""
    assert set(first.data_vars) == set(second.data_vars)
    worst = {}
    for name in first.data_vars:
        a, b = first[name].values, second[name].values
        same = a.shape == b.shape and bool((np.isnan(a) == np.isnan(b)).all())
        worst[name] = float(np.nanmax(np.abs(a - b), initial=0.0)) if same else float("inf")
    return worst


@torch.no_grad()
def logits_of(network, ids):
    return network(torch.tensor([ids]))
