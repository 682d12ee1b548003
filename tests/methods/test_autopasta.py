from functools import cache

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import tasks
from sinkscope.errors import MetricError
from sinkscope.methods.autopasta import auto_focus, autopasta, closest, sentences
from sinkscope.methods.coarse_to_fine import SearchSettings, coarse_to_fine
from sinkscope.methods.zerotuning import ZeroTuningSettings
from sinkscope.methods.zerotuning_compare import BaselineSettings, act
from sinkscope.methods.zerotuning_heads import means

FAST = ZeroTuningSettings(mode="loss", gammas=(0.3, 1.0), batch_size=8)


@cache
def model():
    return sk.load_model("zoo:lm-python")


@cache
def copying():
    return tasks.offline("copy", calibration=8, test=6)


def test_sentences_are_parts_of_the_text():
    text = "Classify it.\nText: It rained all day. The film was dull! Did they love it?"
    found = sentences(text)
    assert found == ["Classify it.", "Text:", "It rained all day.", "The film was dull!", "Did they love it?"]
    assert all(part in text for part in found)


@pytest.mark.parametrize("said", ['"The film was dull."', " the film was dull", "Sure: The film was dull!"])
def test_what_the_model_writes_is_matched_to_a_sentence(said):
    assert closest(said, ["It rained all day.", "The film was dull!", "Did they love it?"]) == "The film was dull!"
    assert closest("", ["It rained.", "The film was dull!"]) == "It rained."


def test_the_model_names_the_focus(monkeypatch):
    """A model that copies one sentence, whatever it is asked, has it as the focus; the answers stay."""
    task = tasks.english("sentiment", calibration=2, test=3)
    wanted = {item.prompt: item.focus for item in (*task.calibration, *task.test)}
    asked = []

    def copies(model, prompts, **given):
        texts = ["".join(row) for row in prompts.tokens]
        asked.extend(texts)
        said = [next(f for p, f in wanted.items() if p[:30] in text) for text in texts]
        ids = [
            [*row, *model.tokenizer(f, add_special_tokens=False)["input_ids"]]
            for row, f in zip(prompts.ids, said, strict=True)
        ]
        made = sk.Prompts.from_ids(ids, model)
        for roles, length in zip(made.roles, prompts.lengths, strict=True):
            roles[length:] = sk.roles.ROLE_INDEX["generated"]
        return made

    monkeypatch.setattr("sinkscope.methods.autopasta.generate", copies)
    blank = tasks.Task("blank", *([tasks.Item(i.prompt, i.options, i.answer) for i in part]
                                  for part in (task.calibration, task.test)))  # fmt: skip
    found = auto_focus(model(), blank)
    assert [item.focus for item in (*found.calibration, *found.test)] == list(wanted.values())
    assert [item.answer for item in found.test] == [item.answer for item in task.test]
    assert all("Copy the one sentence" in text for text in asked)


def test_autopasta_steers_to_the_focus_it_named():
    steer, focused = autopasta(model(), copying(), FAST, BaselineSettings(groups=2))
    assert all(item.focus in sentences(item.prompt) for item in focused.test)
    asked = tasks.Questions.of(focused.test, model())
    edit = steer(asked)
    assert (edit.alpha, edit.mode) == (0.01, "exclude")
    assert edit == sk.SteerKeys(0.01, keys=asked.focus(model()), heads=edit.heads, allow_empty=not edit.heads)


def test_coarse_to_fine_keeps_the_best_group_and_what_gains_in_it():
    questions = tasks.Questions.of(copying().calibration, model())
    template = sk.SteerKeys(0.01, keys=questions.focus(model()))

    def gain(heads):
        found = means(tasks.evaluate(model(), questions, {"none": [], "on": [
            sk.SteerKeys(0.01, keys=questions.focus(model()), heads=heads)]}, batch_size=8))["loss"]  # fmt: skip
        return float(found.sel(edit="none") - found.sel(edit="on"))

    blocks = [[0, 1], [2, 3], [4, 5]]
    best = max(blocks, key=lambda block: gain({layer: range(4) for layer in block}))
    layers = [layer for layer in best if gain({layer: range(4)}) > 0] or best
    found = coarse_to_fine(model(), questions, template, SearchSettings("loss", 3, heads=False, batch_size=8))
    assert sk.metrics.head_list(found) == {layer: [0, 1, 2, 3] for layer in layers}
    fine = coarse_to_fine(model(), questions, template, SearchSettings("loss", 3, batch_size=8))
    expected = [(n, h) for n in layers for h in range(4) if gain({n: [h]}) > 0]
    assert np.argwhere(fine.values).tolist() == [list(at) for at in expected]


def test_where_nothing_gains_nothing_is_chosen():
    questions = tasks.Questions.of(copying().calibration, model())
    drowned = sk.SteerKeys(1e-6, keys=questions.random_token())
    found = coarse_to_fine(model(), questions, drowned, SearchSettings("loss", 1, batch_size=8))
    assert int(found.sum()) == 0


def test_act_by_layers():
    edit = act(model(), copying(), FAST, BaselineSettings(search="layers", groups=3))
    assert all(tuple(heads) == (0, 1, 2, 3) for heads in edit.heads.values())


def test_wrong_searches_are_refused():
    with pytest.raises(MetricError, match=r"BaselineSettings\(search='all'\): use 'heads' or 'layers'"):
        BaselineSettings(search="all")
    with pytest.raises(MetricError, match=r"SearchSettings\(by='luck'\): measures are"):
        SearchSettings("luck")
