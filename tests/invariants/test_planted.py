"""A planted sink is found with its size; its shuffled twin is not."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing

SEEDS = (0, 1, 2, 5)


def reading_of(seed, shuffled, length=32):
    model, truth = testing.planted_sink(seed, shuffled=shuffled)
    ids = testing.text_ids(model.model, batch=4, length=length, seed=seed + 50)
    probes = [sk.KeyMass(), sk.ValueNorm(), sk.MassiveActivations(top=3), sk.SinkDims(), sk.Entropy()]
    return sk.run(model, sk.Prompts.from_ids(ids.tolist(), model), probes, batch_size=3), truth


@pytest.mark.parametrize("seed", SEEDS)
def test_a_planted_sink_is_found_in_exactly_its_heads(seed):
    reading, truth = reading_of(seed, shuffled=False)
    mass = reading.key_mass.isel(key=truth.position).mean("prompt")
    found = [(int(i), int(j)) for i, j in zip(*np.nonzero((mass > 0.8).values), strict=True)]
    assert found == truth.heads
    chance = (1 / np.arange(1, 33)).mean()
    others = [mass.values[i, j] for i in range(4) for j in range(4) if (i, j) not in truth.heads]
    assert max(others) < 1.3 * chance
    for layer, head in truth.heads:
        row = reading.entropy.sel(layer=layer, head=head).isel(query=slice(8, None))
        assert float(row.max()) < 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_massive_activation_has_its_value_dimension_and_position(seed):
    reading, truth = reading_of(seed, shuffled=False)
    for site in ["0.post", "1.mid", "1.post", "2.post", "3.post"]:
        at = reading.sel(site=site).isel(rank=0)
        assert np.abs(at.top_value).values == pytest.approx(truth.value, rel=1e-4)
        assert set(at.top_dim.values.astype(int)) == set(truth.dims)
        assert set(at.top_position.values.astype(int)) == {truth.position}
        assert (np.abs(at.top_value) > 1000 * at.median_abs).all()
        assert (reading.phi.sel(site=site).isel(key=truth.position) > 7.9).all()  # sqrt(64) at most
    before = reading.sel(site="embed").isel(rank=0)
    assert (np.abs(before.top_value) < 100).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_values_of_the_sink_are_drained(seed):
    reading, truth = reading_of(seed, shuffled=False)
    for layer, head in truth.heads:
        norms = reading.value_norm.sel(layer=layer).isel(kv_head=int(reading.kv_of_head[head]))
        assert (norms.isel(key=truth.position) < 0.5 * norms.median("key")).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shuffled_twin_has_no_sink_and_no_massive_activation(seed):
    reading, truth = reading_of(seed, shuffled=True)
    assert truth.heads == []
    mass = reading.key_mass.isel(key=slice(0, 24)).mean("prompt")
    assert float(mass.max()) < 0.4
    ratio = np.abs(reading.top_value.isel(rank=0)) / reading.median_abs
    assert float(ratio.max()) < 100
    assert float(np.abs(reading.top_value).max()) < 100
