"""Probes as values: hashable, described in readings, and open to new ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope import registry, schema, testing
from sinkscope.probes import Probe
from sinkscope.probes.base import dumps
from sinkscope.references import REFERENCES
from sinkscope.schema import Variable

BUILT_IN = [getattr(sk.probes, name) for name in sk.probes.__all__ if name != "Probe"]


@pytest.mark.parametrize("cls", BUILT_IN)
def test_built_in_probes_declare_what_they_make_and_where_it_comes_from(cls):
    assert cls.variables
    assert cls.__doc__
    for name, variable in cls.variables.items():
        assert set(variable.dims) <= set(schema.DIMS), name
        assert variable.units, name
        assert len(variable.meaning) > 10, name
        assert variable.discrete == (variable.units == "index"), name
    assert set(cls.papers) <= set(REFERENCES)
    assert registry.get("probe", cls.__name__) is cls


def test_probes_are_values():
    assert sk.KeyMass() == sk.KeyMass()
    assert sk.Logits(positions=[0, 1]) == sk.Logits(positions=(0, 1))
    assert hash(sk.AttentionMap(layers=[1], heads=[0])) == hash(sk.AttentionMap(layers=(1,), heads=(0,)))
    assert sk.MassiveActivations(top=3) != sk.MassiveActivations(top=4)
    with pytest.raises(AttributeError):
        sk.MassiveActivations().top = 2


def test_descriptions_are_plain_json():
    chosen = xr.DataArray(np.eye(2, dtype=bool), dims=("prompt", "key"))
    probes = (sk.RoleShare(queries=["text", "user"]), sk.AttentionMap(layers=range(2), heads=[1]), sk.KeyMass(chosen))
    assert json.loads(dumps(probes)) == [
        {"probe": "RoleShare", "queries": ["text", "user"], "groups": None},
        {"probe": "AttentionMap", "layers": [0, 1], "heads": [1]},
        {"probe": "KeyMass", "keys": "DataArray('prompt', 'key') with 2 selected", "queries": None},
    ]


@dataclass(frozen=True)
class MeanStream(Probe):
    """A probe of one's own: the mean of the stream over its width."""

    variables: ClassVar[Mapping[str, Variable]] = {
        "mean_stream": Variable(("prompt", "site", "key"), "activation", "mean over the width")
    }

    def sites(self, tower):
        return tower.site_names[:2]

    def at_site(self, hidden, scene):
        return {"mean_stream": hidden.mean(-1)}


@dataclass(frozen=True)
class Careless(Probe):
    """A probe of one's own that makes ``made`` of every layer, whatever it declared."""

    made: object
    variables: ClassVar[Mapping[str, Variable]] = {"careless": Variable(("prompt", "layer", "head"), "x", "nothing")}
    statistics: ClassVar[frozenset[str]] = frozenset({"key_sum"})

    def at_layer(self, stats, context, layer):
        return self.made


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"careless": torch.zeros(7, 3)}, r"Careless: 'careless' is of shape \(7, 3\)\. .*\(prompt 2, head 4\)"),
        ({"careless": torch.zeros(2, 3)}, r"'careless' is of shape \(2, 3\)"),
        ({"careless": torch.zeros(2)}, r"'careless' is of shape \(2,\)"),
        ({"careless": 3}, r"'careless' is 3\. Return a tensor"),
        ({"other": torch.zeros(2, 4)}, r"a probe made 'other', which none declares\. Variables are \['careless'\]"),
        (3, r"a probe of \['careless'\] made 3\. Return tensors by name"),
    ],
)
def test_what_a_probe_did_not_declare_is_refused(made, message):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 7]], model)
    with pytest.raises(sk.ProbeError, match=message):
        sk.run(model, prompts, [Careless(made)], batch_size=2)


def test_a_probe_of_ones_own_runs_beside_the_others():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 7]], model)
    reading = sk.run(model, prompts, [MeanStream(), sk.ResidualNorm()], batch_size=2)
    assert reading.mean_stream.attrs == {"units": "activation", "long_name": "mean over the width"}
    wanted = model.model.model.embed_tokens(torch.tensor([1, 5, 6])).mean(-1).detach()
    np.testing.assert_allclose(reading.mean_stream[0].sel(site="embed"), wanted, atol=1e-6)
    assert np.isnan(reading.mean_stream.sel(site="1.post")).all()  # a site it does not read
    assert json.loads(reading.attrs["probes"])[0] == {"probe": "MeanStream"}
