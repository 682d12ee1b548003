import pytest

from sinkscope import tasks
from sinkscope.errors import PromptError
from sinkscope.tasks.english import BAD, COLOURS, GOOD, KINDS, TOPICS


@pytest.mark.parametrize("name", tasks.ENGLISH)
def test_parts_are_apart_and_the_focus_decides(name):
    task = tasks.load(name, calibration=40, test=80, seed=3)
    assert (len(task.calibration), len(task.test)) == (40, 80)
    assert not {i.prompt for i in task.calibration} & {i.prompt for i in task.test}
    assert all(item.focus and item.prompt.count(item.focus) == 1 for item in task.test)
    assert tasks.english(name, calibration=40, test=80, seed=3) == task
    assert tasks.english(name, calibration=40, test=80, seed=4) != task


@pytest.mark.parametrize("name", tasks.ENGLISH)
def test_the_focus_names_no_option(name):
    for item in tasks.load(name, calibration=40, test=80).test:
        assert not [option for option in item.options if option.strip().casefold() in item.focus.casefold().split()]


@pytest.mark.parametrize("name", ["sentiment", "topic", "inference"])
def test_labels_are_even(name):
    items = tasks.english(name, calibration=100, test=300).test
    counts = [sum(item.answer == place for item in items) for place in range(len(items[0].options))]
    assert max(counts) - min(counts) < 0.25 * len(items) / len(counts) + 8


def test_labels_are_right():
    for item in tasks.english("sentiment").test:
        assert any(word in item.focus for word in (BAD, GOOD)[item.answer])
    for item in tasks.english("topic").test:
        said = TOPICS[item.options[item.answer].strip()]
        assert any(part.split("{}")[-1].strip() in item.focus for part in said)
    for item in tasks.english("inference").test:
        asked = item.prompt.split("Does ")[1]
        told = [colour for colour in COLOURS if f" {colour} " in item.focus]
        assert (told[0] in asked) == (item.answer == 0)
    for item in tasks.english("choice").test:
        kind = item.prompt.split("Which is ")[1].split("?")[0]
        holds = [option.strip().lower() in map(str.lower, KINDS[kind]) for option in item.options]
        assert holds == [place == item.answer for place in range(4)]


def test_wrong_names_and_sizes_are_refused():
    with pytest.raises(PromptError, match=r"english\('sentimnt'\): there is no such task.*sentiment"):
        tasks.english("sentimnt")
    with pytest.raises(PromptError, match=r"english\('topic', calibration=5000\): there are \d+ different questions"):
        tasks.english("topic", calibration=5000)
