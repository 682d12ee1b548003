"""Every public call around a model, each argument wrong in every way: an error of ours, or an answer."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope import testing

HOSTILE = (
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
