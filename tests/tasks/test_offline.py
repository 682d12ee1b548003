from functools import cache

import pytest

import sinkscope as sk
from sinkscope import tasks
from sinkscope.errors import PromptError
from sinkscope.tasks import corpora


@cache
def made(name):
    return tasks.offline(name, calibration=40, test=60)


@cache
def model():
    return sk.load_model("zoo:lm-python")


@pytest.mark.parametrize("name", tasks.OFFLINE)
def test_the_language_model_is_above_chance(name):
    task = made(name)
    questions = tasks.Questions.of(task.test, model())
    found = tasks.rate(tasks.evaluate(model(), questions, {"none": []}, batch_size=16)["correct"])
    assert int(found["n"].item()) == len(task.test) > 40
    assert float(found["low"].item()) > task.chance


@pytest.mark.parametrize("name", ["brackets", "keywords", "operators"])
def test_labels_are_balanced_and_follow_in_the_source(name):
    task = made(name)
    counts = [sum(i.answer == a for i in task.test) for a in range(len(task.test[0].options))]
    assert len(set(counts)) == 1
    sources = corpora.code()
    for item in task.test[:10]:
        assert any(item.prompt + item.options[item.answer] in text for text in sources)
        assert item.focus
        assert item.prompt.endswith(item.focus)


def test_calibration_and_test_come_from_different_files():
    task = made("cloze")
    sources = corpora.code()
    where = [
        {n for n, text in enumerate(sources) for i in part if i.prompt + i.options[i.answer] in text}
        for part in (task.calibration, task.test)
    ]
    assert all(where)
    assert len(where[0] & where[1]) <= len(where[0]) // 4  # some files hold the same passage


def test_copy_asks_for_what_the_list_says_next():
    for item in made("copy").test[:20]:
        words = item.focus.split(", ")
        said = item.prompt.removeprefix(item.focus).strip(", ").split(", ")
        assert said == words[: len(said)]
        assert item.options[item.answer] == f" {words[len(said)]}"


def test_the_same_seed_gives_the_same_task():
    assert tasks.offline("copy", calibration=40, test=60) == made("copy")
    assert tasks.offline("copy", calibration=40, test=60, seed=1) != made("copy")


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        PromptError, match=r"offline\('poems'\): there is no such task\. Tasks are \['brackets', 'cloze'"
    ):
        tasks.offline("poems")
