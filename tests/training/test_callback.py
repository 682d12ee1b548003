"""Sinks along training: the callback in a real Trainer, on several architectures, and the checkpoints of a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from recipes.statistics import sink_statistics
from sinkscope import schema
from sinkscope.errors import ProbeError, PromptError
from sinkscope.testing import tiny
from sinkscope.training import SinkCallback, checkpoints, read_checkpoints, standard_probes, summary


def rows(model, n=3, length=12):
    out = torch.randint(3, model.config.vocab_size, (n, length), generator=torch.Generator().manual_seed(1))
    out[:, 0] = 1
    return out


def state(step, first=True):
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def trained(model, ids, callback, folder, steps=3, **more):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=3, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False, **more,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in ids]
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback] if callback else []).train()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "mistral"])
def test_the_callback_runs_inside_a_trainer_and_leaves_the_training_alone(name, tmp_path):
    ids = rows(tiny(name))
    torch.manual_seed(0)
    watched, alone = tiny(name), tiny(name)
    callback = SinkCallback(ids, every=2, folder=tmp_path / "sinks")
    trained(watched, ids, callback, tmp_path / "a", save_strategy="no")
    trained(alone, ids, None, tmp_path / "b", save_strategy="no")
    for key, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[key]), key
    assert [row["step"] for row in callback.history] == [0, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "sinks" / "sinks.jsonl").read_text().splitlines()]
    assert lines == callback.history
    last = schema.open(tmp_path / "sinks" / "step-000003.nc")
    assert {"step": 3, **summary(last)} == pytest.approx(callback.history[-1])
    assert callback.history[0]["loss"] != callback.history[-1]["loss"]


def test_the_callback_runs_while_peft_trains_an_adapter(tmp_path):
    import peft

    ids = rows(tiny("llama"))
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny("llama"), config)
    callback = SinkCallback(ids, every=2)
    trained(wrapped, ids, callback, tmp_path, save_strategy="no", learning_rate=0.05)
    assert [row["step"] for row in callback.history] == [0, 2, 3]
    assert not any("failed" in row for row in callback.history)
    with torch.no_grad():
        logits = wrapped.eval()(ids).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert callback.history[-1]["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert callback.history[-1]["loss"] < callback.history[0]["loss"] - 0.01


def test_its_numbers_are_those_of_a_second_opinion_and_of_run():
    model = tiny("llama")
    ids = rows(model, length=16)
    callback = SinkCallback(ids, threshold=0.1)
    model.train()
    callback.on_train_begin(None, state(0), None, model=model)
    assert model.training
    assert all(module.training for module in model.modules())
    (row,) = callback.history
    other = sink_statistics(model, ids)
    alpha = np.array(other["alpha"])
    assert row["key_mass"] == pytest.approx(alpha.mean(), abs=1e-5)
    assert row["key_mass_max"] == pytest.approx(alpha.max(), abs=1e-5)
    assert row["value_drain_min"] == pytest.approx(np.array(other["value_ratio"]).min(), rel=1e-4)
    assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
    handle = sk.load_model(model)
    ds = sk.run(handle, sk.Prompts.from_ids(ids.tolist(), handle), standard_probes(handle))
    assert row["sink_rate"] == pytest.approx(float(sk.metrics.sink_rate(ds, 0.1)))
    assert row["residual_ratio"] > 0
    top = ds["top_value"].isel(rank=0)
    ratio = (abs(top) / ds["median_abs"]).mean("prompt")
    assert row["massive"] == pytest.approx(float(ratio.max()))
    assert row["massive_dim"] in ds["top_dim"].isel(rank=0, site=int(ratio.argmax("site"))).values


def test_an_encoder_is_measured_without_a_loss():
    model = tiny("bert")
    callback = SinkCallback(rows(model).tolist())
    callback.on_train_begin(None, state(0), None, model=model)
    assert "loss" not in callback.history[0]
    assert callback.history[0]["key_mass"] > 0


def test_other_processes_measure_nothing_and_the_last_step_is_measured_once():
    model = tiny("llama")
    callback = SinkCallback(rows(model), every=2)
    callback.on_train_begin(None, state(0, first=False), None, model=model)
    callback.on_step_end(None, state(2, first=False), None, model=model)
    assert callback.history == []
    callback.on_step_end(None, state(4), None, model=model)
    callback.on_train_end(None, state(4), None, model=model)
    assert [row["step"] for row in callback.history] == [4]


def test_a_measurement_that_fails_does_not_stop_the_training(tmp_path):
    model = tiny("llama")
    callback = SinkCallback(rows(model), every=1, folder=tmp_path)
    callback.on_train_begin(None, state(0), None, model=model)
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = torch.nan
    with pytest.warns(UserWarning, match=r"SinkCallback: step 1 was not measured"):
        callback.on_step_end(None, state(1), None, model=model)
    assert set(callback.history[-1]) == {"step", "failed"}
    assert "failed" in (tmp_path / "sinks.jsonl").read_text().splitlines()[-1]


def test_a_folder_that_is_gone_does_not_stop_the_training(tmp_path):
    model = tiny("llama")
    callback = SinkCallback(rows(model), every=1, folder=tmp_path / "sinks")
    callback.on_train_begin(None, state(0), None, model=model)
    (tmp_path / "sinks").rename(tmp_path / "moved")
    (tmp_path / "sinks").write_text("in the way")
    with pytest.warns(UserWarning, match=r"SinkCallback: step 1 was not measured"):
        callback.on_step_end(None, state(1), None, model=model)
    assert [set(row) == {"step", "failed"} for row in callback.history] == [False, True]


def test_the_callback_says_what_is_wrong_before_the_first_step():
    with pytest.raises(PromptError, match=r"no prompts, or an empty one. Give texts, or token ids, a row per prompt"):
        SinkCallback([])
    with pytest.raises(PromptError, match=r"no prompts, or an empty one"):
        SinkCallback([[1, 2], []])
    with pytest.raises(PromptError, match=r"texts need the model's tokenizer. Pass tokenizer="):
        SinkCallback(["a text"])
    with pytest.raises(ProbeError, match=r"every=0.*Use 1 or more"):
        SinkCallback([[1, 2]], every=0)
    model = tiny("llama")
    with pytest.raises(PromptError, match=r"vocabulary"):
        SinkCallback([[1, model.config.vocab_size]]).on_train_begin(None, state(0), None, model=model)


def test_checkpoints_of_a_run_become_one_reading_along_steps(tmp_path):
    model = tiny("llama")
    ids = rows(model)
    trained(model, ids, None, tmp_path / "out", steps=4, save_strategy="steps", save_steps=2, learning_rate=0.01)
    assert list(checkpoints(tmp_path / "out")) == [2, 4]
    found = read_checkpoints(tmp_path / "out", ids)
    assert found["step"].values.tolist() == [2, 4]
    rates = sk.metrics.sink_rate(found, 0.1)
    assert rates.dims == ("step",)
    handle = sk.load_model(model)
    direct = sk.run(handle, sk.Prompts.from_ids(ids.tolist(), handle), standard_probes(handle))
    xr.testing.assert_allclose(
        found["key_mass"].sel(step=4, drop=True).reset_coords(drop=True),
        direct["key_mass"].reset_coords(drop=True), atol=1e-5,
    )  # fmt: skip
    assert abs(found["key_mass"].sel(step=2) - found["key_mass"].sel(step=4)).max() > 1e-6
    schema.save(found, tmp_path / "along.nc")
    xr.testing.assert_allclose(schema.open(tmp_path / "along.nc")["token_loss"], found["token_loss"])


def test_checkpoints_by_hand_and_their_errors(tmp_path):
    models = {0: "zoo:bb-1l", 600: "zoo:bb-1l-k3"}
    found = read_checkpoints(models, ["A b C d", "e f G"], [sk.KeyMass()])
    assert found["key_mass"].sizes["step"] == 2
    assert set(found.data_vars) == {"key_mass"}
    with pytest.raises(PromptError, match=r"no folder named checkpoint-NUMBER there. Name the output folder"):
        read_checkpoints(tmp_path, [[1, 2]])
    with pytest.raises(PromptError, match=r"no checkpoints. Pass \{step: model"):
        read_checkpoints({}, [[1, 2]])
    with pytest.raises(PromptError, match=r"other tokens at step 1 than at step 0. Pass one tokenizer="):
        read_checkpoints({0: "zoo:bb-1l", 1: "zoo:lm-python"}, ["A b C d"], [sk.KeyMass()])


def test_the_command_line_measures_the_checkpoints_of_a_folder(tmp_path, capsys):
    from sinkscope.cli import main

    for step in (10, 5):
        tiny("llama", seed=step).save_pretrained(tmp_path / "out" / f"checkpoint-{step}")
    target = tmp_path / "along.nc"
    arguments = ["checkpoints", tmp_path / "out", "--ids", "1,5,9,12,20,7", "--ids", "1,8,30", "-o", target]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    direct = read_checkpoints(tmp_path / "out", [[1, 5, 9, 12, 20, 7], [1, 8, 30]])
    found = schema.open(target)
    xr.testing.assert_allclose(found["key_mass"], direct["key_mass"], atol=1e-6)
    assert said[0].split()[:2] == ["step", "sink_rate"]
    assert [line.split()[0] for line in said[1:3]] == ["5", "10"]
    assert float(said[1].split()[-1]) == pytest.approx(summary(direct.sel(step=5))["loss"], rel=1e-3)
    assert main(["show", str(target)]) == 0
    assert "Mean of each variable by step" in capsys.readouterr().out
    assert main(["checkpoints", str(tmp_path), "--ids", "1,2", "-o", str(tmp_path / "b.nc")]) == 1
    assert "no folder named checkpoint-NUMBER there" in capsys.readouterr().err
    assert main(["checkpoints", str(tmp_path), "--image", str(tmp_path / "x.png"), "-o", str(tmp_path / "b.nc")]) == 1
