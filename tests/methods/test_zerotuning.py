import dataclasses
import json
from functools import cache

import numpy as np
import pytest

import sinkscope as sk
from methods.results import check_result
from sinkscope import tasks
from sinkscope.errors import MetricError, PromptError
from sinkscope.methods import zerotuning
from sinkscope.methods.zerotuning import ZeroTuningSettings, zerotune
from sinkscope.tasks import Task

FAST = ZeroTuningSettings(mode="loss", gammas=(0.3, 1.0, 3.0), batch_size=8)


@cache
def model():
    return sk.load_model("zoo:lm-python")


@cache
def copying():
    return tasks.offline("copy", calibration=8, test=16)


@cache
def tuned():
    return zerotune(model(), copying(), FAST)


def relabelled(items):
    return tuple(dataclasses.replace(item, answer=(item.answer + 1) % len(item.options)) for item in items)


def test_copying_gains_from_a_weaker_first_token():
    result = tuned()
    assert (result.kind, result.gamma) == ("down", 0.3)
    loss = result.calibration["loss"]
    assert float(loss.sel(gamma=0.3)) < float(loss.sel(gamma=1.0)) < float(loss.sel(gamma=3.0))
    change = result.test["log_probability"].diff("edit")
    assert float(change.mean()) > 0.1
    chosen = {(layer, head) for layer, heads in result.edit.heads.items() for head in heads}
    classes = result.profile["head_class"]
    assert chosen == {(n, h) for n in range(6) for h in range(4) if classes.sel(layer=n, head=h) == "down"}
    assert len(chosen) > 12  # more than half: the dominant class


def test_the_test_part_is_answered_as_a_run_with_the_edit_would():
    result, questions = tuned(), tasks.Questions.of(copying().test, model())
    reading = sk.run(model(), questions.prompts, [questions.probe], [result.edit], batch_size=16)
    alone = tasks.scores(reading, questions)
    np.testing.assert_allclose(
        result.test["log_probability"].sel(edit="zerotuning"), alone["log_probability"], atol=1e-4
    )
    expected = (result.test["correct"].sel(edit="zerotuning") - result.test["correct"].sel(edit="none")).mean()
    assert float(result.gain["difference"]) == pytest.approx(float(expected))
    assert int(result.gain["n"]) == len(copying().test)


def test_test_labels_play_no_part_in_the_choice():
    task = copying()
    other = zerotune(model(), Task("t", task.calibration, relabelled(task.test)), FAST)
    assert other.edit == tuned().edit
    assert float(other.test["correct"].mean()) < float(tuned().test["correct"].mean())


def test_entropy_reads_no_label_and_accuracy_does():
    task = copying()
    wrong = Task("t", relabelled(task.calibration), task.test)
    free = dataclasses.replace(FAST, mode="entropy")
    assert zerotune(model(), wrong, free).edit == zerotune(model(), task, free).edit
    assert zerotune(model(), wrong, FAST).edit != tuned().edit


def test_the_test_part_is_answered_once(monkeypatch):
    asked = []
    evaluate = zerotuning.evaluate

    def counting(model, questions, variants, **options):
        asked.append((questions.items, list(variants)))
        return evaluate(model, questions, variants, **options)

    monkeypatch.setattr(zerotuning, "evaluate", counting)
    zerotune(model(), copying(), dataclasses.replace(FAST, heads="all"))
    assert asked == [(copying().test, ["none", "zerotuning"])]


def test_all_heads_need_no_profile():
    result = zerotune(model(), copying(), dataclasses.replace(FAST, heads="all"))
    assert result.profile is None
    assert (result.kind, result.edit.heads) == ("all", None)
    assert result.edit == sk.ScaleKeys(0.3)


def test_nothing_is_scaled_where_no_head_moves_the_score():
    one = Task("one", copying().calibration[:1], copying().test[:3])
    result = zerotune(model(), one, dataclasses.replace(FAST, mode="accuracy"))
    assert (result.kind, result.gamma) == ("none", 1.0)
    np.testing.assert_array_equal(*(result.test["log_probability"].sel(edit=e) for e in ("none", "zerotuning")))
    assert "gamma 1 on 0 heads (none), chosen by accuracy on 1 questions" in result.summary()


def test_table_figure_and_citation():
    result = tuned()
    frame = check_result(result)
    assert frame.index.tolist() == ["none", "zerotuning", "difference"]
    assert frame.loc["difference", "value"] == pytest.approx(float(result.gain["difference"]))
    assert frame.loc["difference", "value"] == pytest.approx(frame["value"]["zerotuning"] - frame["value"]["none"])


def test_a_result_can_be_saved(tmp_path):
    ds = tuned().to_dataset()
    again = sk.open(sk.save(ds, tmp_path / "result.nc"))
    assert json.loads(again.attrs["chosen"]) == tuned().edit.to_dict()
    assert (again.attrs["task"], again.attrs["kind"]) == ("copy", "down")
    np.testing.assert_allclose(again["calibration_loss"], tuned().calibration["loss"])
    assert again["profile_head_class"].values.tolist() == tuned().profile["head_class"].values.tolist()
    assert "copy: gamma 0.3 on" in tuned().summary()


def test_what_is_refused():
    with pytest.raises(PromptError, match=r"zerotune: the task is a tuple\. Give a sinkscope\.tasks\.Task"):
        zerotune(model(), (copying().calibration, copying().test))
    with pytest.raises(MetricError, match=r"ZeroTuningSettings\(by='f1'\): measures are \['accuracy', 'entropy'"):
        ZeroTuningSettings(mode="f1")


def test_heads_from_one_backward_pass_help_as_well():
    by_gradient = dataclasses.replace(FAST, profile_by="gradient")
    result = zerotune(model(), copying(), by_gradient)
    assert result.profile.attrs["estimate"] == "first order"
    assert (result.kind, result.gamma) == ("down", 0.3)
    assert float(result.test["log_probability"].diff("edit").mean()) > 0.1


def test_a_gradient_of_what_has_none_is_refused():
    with pytest.raises(MetricError, match=r"ZeroTuningSettings\(profile_by='gradient', mode='accuracy'\)"):
        ZeroTuningSettings(profile_by="gradient")
    with pytest.raises(MetricError, match=r"profile_by='luck'\): use 'passes' or 'gradient'"):
        ZeroTuningSettings(profile_by="luck")
