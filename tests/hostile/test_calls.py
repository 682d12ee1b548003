"""Every public call around a model, each argument wrong in every way: an error of ours, or an answer."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope import testing

HOSTILE = (
    10**400,
    None, True, -1, 1.5, math.nan, "\ud800", "nix", [], [1.5], [None], [[]], [[1, 5], [2]], {"a": 1}, object(), b"a",
    slice(None), sk.KeyMass, sk.KeyMass(), np.array(5), xr.Dataset(),
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def prompts(model):
    return sk.Prompts.from_ids([[1, 5, 9, 4], [1, 6, 2]], model)


@pytest.fixture(scope="module")
def reading(model, prompts):
    return sk.run(model, prompts, [sk.KeyMass(), sk.Entropy()])


def calls(model, prompts, reading):
    """Each public call with one right value for each of its arguments."""
    usual = {"model": model, "prompts": prompts, "edits": [sk.MaskKeys("first")]}
    ids = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 1]])}
    settings = {f.name: f.default for f in dataclasses.fields(sk.ExplainSettings)}
    how = {f.name: f.default for f in dataclasses.fields(sk.SurveySettings)}
    resampling = {f.name: f.default for f in dataclasses.fields(sk.metrics.Resampling)}
    of_model = {"model": model}
    return {
        "run": (sk.run, usual | {"probes": [sk.KeyMass()], "batch_size": 1, "tower": None, "cache": None}),
        "sweep": (sk.sweep, {
            "model": model, "prompts": prompts, "variants": {"a": [sk.MaskKeys("first")]}, "probes": [sk.KeyMass()],
            "executor": None, "cache": None, "batch_size": 1, "baseline": False, "tower": None}),
        "generate": (sk.generate, usual | {
            "max_new_tokens": 2, "batch_size": 1, "tower": None, "eos_token_id": 2, "logits_processor": None,
            "unheard_of": None, "cache_implementation": None, "past_key_values": None}),
        "applied": (sk.applied, usual | {"tower": None}),
        "survey": (sk.survey, of_model | {
            "source": [[1, 5, 3]], "probes": [sk.KeyMass()], "reduce": None, "shard": None, "checkpoint": None,
            "settings": None}),
        "monitor": (sk.monitor, {"model": model, "to": None}),
        "grid": (sk.grid, {"edit": sk.ScaleKeys(0.5), "gamma": [0.5], "layers": [0]}),
        "from_texts": (sk.Prompts.from_texts, of_model | {"texts": ["a"], "add_bos": "auto"}),
        "from_ids": (sk.Prompts.from_ids, of_model | {"ids": [[1, 2]]}),
        "from_images": (sk.Prompts.from_images, of_model | {"images": ["a.png"]}),
        "from_chat": (sk.Prompts.from_chat, of_model | {"items": [{"text": "a"}]}),
        "from_pairs": (sk.Prompts.from_pairs, of_model | {"pairs": [("a", "b")]}),
        "from_inputs": (sk.Prompts.from_inputs, of_model | {"inputs": ids}),
        "crop": (prompts.crop, of_model | {"boxes": [None, None], "beside": True}),
        "subset": (prompts.subset, {"indices": [0]}),
        "batch": (prompts.batch, {"indices": [0], "device": "cpu"}),
        "spans": (prompts.spans, {"batch_size": 1}),
        "label_tokens": (sk.label_tokens, {"prompts": prompts, "groups": {"a": "first"}}),
        "load_model": (sk.load_model, {
            "source": model.model, "dtype": None, "device": None, "backend": "auto", "gguf_file": None,
            "device_map": None, "quantization_config": None}),
        "save": (sk.save, {"ds": reading, "path": "a.nc", "overwrite": True}),
        "open": (sk.open, {"path": "a.nc"}),
        "concat": (sk.concat, {"readings": [reading, reading], "dim": "prompt"}),
        "merge": (sk.merge, {"readings": [reading], "names": None}),
        "to_dataframe": (sk.to_dataframe, {"ds": reading, "variable": "key_mass"}),
        "cite": (sk.cite, {"ds": reading}),
        "findings": (sk.report.findings, {"ds": reading}),
        "ExplainSettings": (sk.ExplainSettings, settings),
        "SurveySettings": (sk.SurveySettings, how),
        "Resampling": (sk.metrics.Resampling, resampling),
    }  # fmt: skip


NAMES = (
    "run", "sweep", "generate", "applied", "survey", "monitor", "grid", "from_texts", "from_ids", "from_images",
    "from_chat", "from_pairs", "from_inputs", "crop", "subset", "batch", "spans", "label_tokens", "load_model", "save",
    "open", "concat", "merge", "to_dataframe", "cite", "findings", "ExplainSettings", "SurveySettings", "Resampling",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::sinkscope.errors.SinkscopeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_no_argument_lets_a_raw_error_out(name, model, prompts, reading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, right = calls(model, prompts, reading)[name]
    raw = []
    for argument in right:
        for hostile in HOSTILE:
            try:
                found = function(**{**right, argument: hostile})
                if name in ("applied", "monitor"):
                    with found:
                        pass
            except sk.SinkscopeError:
                pass
            except Exception as error:
                raw.append(f"{argument}={hostile!r}: {type(error).__name__}: {error}")
    assert not raw, "\n".join(raw)


def test_a_name_where_a_model_is_wanted(model, prompts):
    for call in (
        lambda: sk.Prompts.from_texts(["a"], "minilm"),
        lambda: sk.Prompts.from_ids([[1]], None),
        lambda: sk.generate("minilm", prompts),
        lambda: sk.run(model.model, prompts),
    ):
        with pytest.raises(sk.ModelError, match=r"expected a model, got .*\. Load it first: model = sinkscope\.load_"):
            call()


def test_a_threshold_that_phi_never_reaches_is_said(model, prompts):
    with pytest.warns(sk.errors.SinkscopeWarning, match=r"tau 30 is never reached: .* width 32 phi is at most 5\.657"):
        sk.run(model, prompts, [sk.KeyMass()], [sk.Redistribute(tau=30.0)])


def test_token_ids_of_every_make(model):
    """What torch and numpy have beside lists: read as they stand, or refused; never cut, wrapped or unmasked."""
    of = lambda ids: sk.Prompts.from_ids([ids], model).ids[0].tolist()  # noqa: E731
    for right in (torch.tensor([1, 5]), np.array([5, 1], dtype=np.int8)[::-1], xr.DataArray([1, 5]), (np.int64(1), 5)):
        assert of(right) == [1, 5]
    wrong = (
        torch.tensor([1.0, 5.0], requires_grad=True), [np.True_, 5], np.array([True, False]), {1, 5}, iter([1, 5]),
        torch.ones(2, device="meta"), torch.ones(2, dtype=torch.bfloat16), [None, 5], ["1", "5"], np.array([1, 5], "O"),
    )  # fmt: skip
    for ids in wrong:
        with pytest.raises(sk.PromptError, match=r"prompt 0: expected a flat list of token ids"):
            of(ids)
    with pytest.raises(sk.PromptError, match=r"prompt 0: 9223372036854775813 is no token id"):
        of(np.array([2**63 + 5], dtype=np.uint64))
    with pytest.raises(sk.PromptError, match=r"some of its ids are masked\. Leave them out: ids\.compressed\(\)"):
        of(np.ma.array([1, 5, 9], mask=[0, 1, 0]))


def test_a_generator_serves_once_and_says_so(model, prompts):
    edits = (edit for edit in [sk.MaskKeys("first")])
    assert "MaskKeys" in sk.run(model, prompts, [sk.KeyMass()], edits).attrs["edits"]
    with pytest.raises(sk.ProbeError, match=r"edits: this generator gives nothing; it may have been gone through"):
        sk.run(model, prompts, [sk.KeyMass()], edits)
    with pytest.raises(sk.ProbeError, match=r"MaxAttention\(keys=\): a generator can be gone through only once"):
        sk.MaxAttention(keys=(key for key in [0]))
    with pytest.raises(sk.EditError, match=r"MaskKeys\(keys=.*cannot select tokens by"):
        sk.MaskKeys(itertools.count())
    with pytest.raises(sk.ProbeError, match=r"cannot select tokens by range\(0, 1000000000000\)"):
        sk.run(model, prompts, [sk.MaxAttention(keys=range(10**12))])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"num_beams": 0}, r"refuses to continue these prompts \(ZeroDivisionError"),
        ({"forced_eos_token_id": 9999}, r"refuses to continue these prompts \(IndexError"),
        ({"logits_processor": [lambda _, scores: scores[:1]]}, r"it gave 1 rows for 2 prompts|TypeCheckError"),
    ],
)
def test_what_generation_breaks_over(model, prompts, options, wanted):
    with pytest.raises(sk.PromptError, match=wanted):
        sk.generate(model, prompts, max_new_tokens=2, **options)
    assert sk.generate(model, prompts, max_new_tokens=2).lengths == (6, 5)


def test_a_model_that_was_mended_is_read(prompts):
    """A refusal holds as long as the model is what was refused: a hook that raises, parts of two number types."""
    network = testing.tiny("llama")

    def stop(*_):
        raise RuntimeError("mine")

    handle = network.model.layers[1].register_forward_hook(stop)
    model = sk.load_model(network)
    with pytest.raises(sk.UnsupportedModelError, match="RuntimeError: mine"):
        sk.run(model, prompts, [sk.KeyMass()])
    handle.remove()
    whole = sk.run(model, prompts, [sk.KeyMass()])
    network.model.layers[1].half()
    model = sk.load_model(network)
    with pytest.raises(sk.UnsupportedModelError, match="same dtype"):
        sk.run(model, prompts, [sk.KeyMass()])
    network.float()
    np.testing.assert_allclose(sk.run(model, prompts, [sk.KeyMass()]).key_mass, whole.key_mass, atol=1e-2)


def test_a_model_without_numbers_is_refused():
    with pytest.raises(
        sk.ModelError, match=r"lies on the meta device and holds no numbers \(\d+ such tensors\)\. Load"
    ):
        sk.load_model(testing.tiny("llama").to("meta"))


def test_findings_of_a_reading_that_lost_its_roles(reading):
    with pytest.raises(sk.MetricError, match="find_sinks needs the coordinate 'token_role', which is missing"):
        sk.report.findings(reading.drop_vars("token_role"))


def test_whole_numbers_of_numpy_are_whole_numbers(model, prompts):
    plain = sk.generate(model, prompts, max_new_tokens=2)
    assert [ids.tolist() for ids in sk.generate(model, prompts, max_new_tokens=np.int64(2)).ids] == [
        ids.tolist() for ids in plain.ids
    ]
    assert sk.LimitWindow(np.int64(4)) == sk.LimitWindow(4)
    with pytest.raises(sk.EditError, match=r"window must be a whole number of at least 1, below 2\^31"):
        sk.LimitWindow(2**31)
