import pytest

from sinkscope.errors import PromptError
from sinkscope.tasks import Item, Task
from sinkscope.tasks.base import balanced


def item(number, answer=0, options=(" a", " b")):
    return Item(f"question {number}", options, answer)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("  ", (" a", " b"), 0), r"Item: the prompt is empty\. Give the text that the answer continues"),
        (("q", (" a",), 0), r"Item\('q'\.\.\.\): options are \[' a'\]\. Give two or more different texts"),
        (("q", (" a", " a"), 0), r"options are \[' a', ' a'\]\. Give two or more different texts"),
        (("q", (" a", " b"), 2), r"the answer is option 2, but there are options 0\.\.1\. Give the place"),
        (("q", (" a", " b"), 0, "other"), r"the focus 'other' is no part of the prompt\. Copy it from there"),
    ],
)
def test_what_a_question_must_have(given, words):
    with pytest.raises(PromptError, match=words):
        Item(*given)


def test_a_test_that_was_seen_is_refused_whatever_its_blanks():
    words = (
        r"Task\('t'\): 2 of 3 test questions are in the calibration part too, first 'question 1'\. "
        r"A score on them would be no test"
    )
    again = Item("question\n 2", (" x", " y"), 1)
    with pytest.raises(PromptError, match=words):
        Task("t", (item(1), item(2)), (item(1), again, item(3)))
    with pytest.raises(PromptError, match=r"Task\('t'\): the test part is empty\. Give at least one question"):
        Task("t", (item(1),), ())


def test_split_shares_no_prompt_and_takes_each_once():
    items = [item(i % 10, i % 2) for i in range(20)]
    task = Task.split("t", items, calibration=4, test=100, seed=1, source="here")
    assert (len(task.calibration), len(task.test), task.source) == (4, 6, "here")
    assert {i.prompt for i in (*task.calibration, *task.test)} == {f"question {n}" for n in range(10)}
    assert task == Task.split("t", items, calibration=4, test=100, seed=1, source="here")
    assert task.calibration != Task.split("t", items, calibration=4, test=100, seed=2).calibration
    with pytest.raises(PromptError, match=r"Task\.split\('t', calibration=10\): there are 10 different questions"):
        Task.split("t", items, calibration=10, test=1)


def test_chance_is_that_of_a_blind_choice():
    test = (item(1), item(2, options=(" a", " b", " c", " d")))
    task = Task("t", (item(0),), test)
    assert task.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert task.first(1, 1).test == test[:1]


def test_balanced_has_as_many_of_each_answer():
    items = [item(n, int(n < 3)) for n in range(20)]
    answers = [i.options[i.answer] for i in balanced(items, 8)]
    assert sorted(answers) == [" a"] * 3 + [" b"] * 3
    assert len(balanced(items, 4)) == 4
    assert len(balanced(items, 1)) == 1
    assert balanced([], 3) == []
