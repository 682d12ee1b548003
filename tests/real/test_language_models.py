"""Readings of the two pretrained language models equal an independent float64 computation, edited and not."""

import time

import numpy as np
import pytest

import sinkscope as sk
from real import reference
from sinkscope.methods import secondary_sinks
from sinkscope.methods.residual import residual_stream

TEXTS = [
    "The committee had promised to publish its findings before the summer, but by the end of August nothing had been "
    "printed, and the members no longer answered letters about it.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
    "len(values)\n",
    "First, wash the rice. Then, add water, salt, and a little oil; bring it to a boil; cover it. Wait 12 minutes.",
]
MASSIVE = {"smollm2-135m": (11, 507), "gemma3-270m": (6, 163)}
"""Block and dimension that are set to zero: where the massive activation of each model stands."""


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def both(request, need):
    """The model as a user loads it, and the same weights in float64 with eager attention."""
    model = sk.load_model(need(request.param))
    return model, reference.load(model.model.name_or_path)


@pytest.fixture(scope="module")
def prompts(both):
    model, _ = both
    return sk.Prompts.from_texts(TEXTS, model)


def ids_of(model):
    return [model.tokenizer(text).input_ids for text in TEXTS]


PROBES = [
    sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys="first", queries="all"),
    sk.ValueNorm(), sk.ResidualNorm(), sk.MassiveActivations(top=3), sk.TokenLoss(),
]  # fmt: skip


def expected(network, ids, **edit):
    """The variables of the reading, from the maps of the reference."""
    found = reference.read(network, ids, **edit)
    maps = found["maps"]
    rows = np.arange(1, maps.shape[-1] + 1)
    seen = (rows[:, None] >= rows)[None, None]  # a sliding window is longer than these prompts
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(maps > 0, maps * np.log(maps), 0).sum(-1)
    return {
        "key_mass": (maps * seen).sum(-2) / seen.sum(-2),
        "entropy": entropy,
        "max_attention": maps[..., 0],
        "value_norm": np.linalg.norm(found["values"], axis=-1).transpose(0, 2, 1),
        "residual_norm": {name: np.linalg.norm(state, axis=-1) for name, state in found["stream"].items()},
        "token_loss": found["losses"],
        "maps": maps,
        "top_value": {name: np.abs(state).max() for name, state in found["stream"].items()},
    }


def compare(ds, wanted, prompt):
    one = ds.isel(prompt=prompt)
    length = wanted["key_mass"].shape[-1]
    assert int(one["token"].notnull().sum()) >= length
    for name, tolerance in {"key_mass": 2e-5, "max_attention": 2e-5, "entropy": 1e-4}.items():
        ours = one[name].transpose("layer", "head", ...).values[..., :length]
        assert np.abs(ours - wanted[name]).max() < tolerance, name
    of_role = one["token_role"].values[:length, None] == one["role"].values
    shares = (wanted["maps"] @ of_role).mean(-2)  # over all queries
    assert np.abs(one["role_share"].transpose("layer", "head", "role").values - shares).max() < 2e-5, "role_share"
    ours = one["value_norm"].transpose("layer", "kv_head", "key").values[..., :length]
    assert np.abs(ours / wanted["value_norm"] - 1).max() < 1e-4
    for site in ds["site"].values.tolist():
        norms = one["residual_norm"].sel(site=site).values[:length]
        assert np.abs(norms / wanted["residual_norm"][site] - 1).max() < 1e-4, site
        top = abs(float(one["top_value"].sel(site=site).isel(rank=0)))
        assert abs(top / wanted["top_value"][site] - 1) < 1e-4, site
    losses, other = one["token_loss"].values[: length - 1], wanted["token_loss"]
    # Relative where an edit raises the loss: masking takes Gemma to 10 nats, where float32 alone is 9e-5 off.
    assert (np.abs(losses - other) < 1e-4 * np.maximum(1, other)).all()


EDITS = {
    "none": ([], {}),
    "first key masked": ([sk.MaskKeys("first")], {"gamma": 0.0}),
    "first key halved": ([sk.ScaleKeys(0.5, keys="first")], {"gamma": 0.5}),
}


@pytest.mark.parametrize("name", EDITS)
def test_attention_edits_equal_the_reference(both, prompts, name):
    model, network = both
    edits, same = EDITS[name]
    ds = sk.run(model, prompts, PROBES, edits, batch_size=3)
    for prompt, ids in enumerate(ids_of(model)):
        compare(ds, expected(network, ids, **same), prompt)


@pytest.mark.parametrize(("keys", "tokens"), [("first", slice(0, 1)), ("all", slice(None))])
def test_a_zeroed_dimension_equals_the_reference(both, prompts, keys, tokens):
    model, network = both
    block, dim = MASSIVE[model.id]
    ds = sk.run(model, prompts, PROBES, [sk.SetActivations(f"{block}.post", dims=[dim], keys=keys)], batch_size=3)
    for prompt, ids in enumerate(ids_of(model)):
        compare(ds, expected(network, ids, zeroed=(block, dim, tokens)), prompt)
    plain = sk.run(model, prompts, [sk.TokenLoss()], batch_size=3)
    assert float(abs(ds["token_loss"] - plain["token_loss"]).max()) > 0.1  # the dimension matters


def test_the_second_load_reads_what_was_converted(both, monkeypatch):
    """In under 3 processor seconds for SmolLM2 (.6 here); Gemma's table of 262,144 tokens takes 1.5 of its 1.9."""
    model, _ = both
    monkeypatch.setattr("gguf.GGUFReader", None)  # whoever reads the file again fails
    start = time.process_time()  # not the clock: other tests run beside this one
    again = sk.load_model(model.id)
    if model.id == "smollm2-135m":
        assert time.process_time() - start < 3
    assert again.fingerprint == model.fingerprint


def test_readings_say_what_the_weights_were(both, prompts):
    model, _ = both
    kind = {"smollm2-135m": "Q4_1", "gemma3-270m": "Q4_K_M"}[model.id]
    ds = sk.run(model, prompts, [sk.KeyMass(keys="first")])
    assert ds.attrs["model_id"] == model.id
    assert ds.attrs["model_origin"].startswith(f"de-quantised from {kind} (GGUF, sha256 ")


def test_the_first_token_is_the_sink(both, prompts):
    """Gu et al. 2025: most heads give the first token more than .3 on prose."""
    model, _ = both
    ds = sk.run(model, prompts, [sk.KeyMass()], batch_size=3)
    assert float(sk.metrics.sink_rate(ds).mean()) > 0.5


def test_the_secondary_sinks_of_smollm2_are_those_of_its_first_stage(need):
    """One primary for all layers found none: its state is 650 from block 2 to 8, gone, and 23,000 from block 11 on."""
    model = sk.load_model(need("smollm2-135m"))
    prompts = sk.Prompts.from_texts(sk.tasks.corpora.texts()[:4], model)
    found = secondary_sinks.detect(model, prompts)
    assert set(found["stage_first"].values.ravel().tolist()) == {1, 11}
    assert found["stage_last"].isel(stages=0).values.tolist() == [8] * 4
    later = found["kind"].values == "secondary"
    assert later.sum() >= 4
    assert set(found["start"].values[later].tolist()) <= {2, 3}
    assert not later[:, 0].any()


def test_the_mlp_of_block_11_writes_the_peak_of_smollm2(need):
    model = sk.load_model(need("smollm2-135m"))
    prompts = sk.Prompts.from_texts([sk.tasks.corpora.texts()[0]], model)
    peak = sk.metrics.sublayer_peak(residual_stream(model, prompts, 0))
    assert int(peak["mlp"].argmax()) == 11
    assert peak["mlp"][11] > 50 * peak["attention"].max()
