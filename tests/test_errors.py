"""One base class for every error, so that a caller can catch them all."""

import inspect

import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import errors
from sinkscope.errors import EditError, EditHasNoEffect, ModelError, PromptError, SinkscopeError, UnsupportedModelError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_one_of_ours_says_what_it_is_and_keeps_its_message(cls):
    assert issubclass(cls, SinkscopeError | UserWarning)
    assert cls.__doc__
    assert str(cls("what was asked")) == "what was asked"
    assert not issubclass(cls, ValueError | KeyError)


def test_no_message_moves_the_cursor_of_a_terminal():
    assert str(ModelError("two\nlines of \x1b[31m\ud800")) == "two\nlines of \\x1b[31m\\ud800"
    with pytest.raises(ModelError) as raised:
        sk.load_model("\x1b[31mred")
    assert str(raised.value).isprintable()


def test_the_narrow_ones_are_kinds_of_the_wide_ones():
    assert issubclass(UnsupportedModelError, ModelError)
    assert issubclass(EditHasNoEffect, EditError)
    assert len(CLASSES) >= 10


@pytest.mark.parametrize(
    ("ask", "offered"),
    [
        (lambda: sk.zoo.path("lm-pyton"), "lm-python"),
        (lambda: sk.zoo.curve("zoo:bb-1l-rlu"), "bb-1l-relu"),
        (lambda: sk.MaskKeys("frist"), "first"),
        (lambda: sk.grid(sk.ScaleKeys, gama=[0.5]), "gamma"),
        (lambda: sk.tasks.load("coppy"), "copy"),
        (lambda: sk.metrics.sink_rate(xr.Dataset(), definition="gu2052"), "gu2025"),
    ],
)
def test_a_name_with_a_slip_is_answered_with_the_one_that_was_meant(ask, offered):
    with pytest.raises(SinkscopeError, match=f"Did you mean '{offered}'"):
        ask()


def test_a_task_where_its_questions_are_wanted_is_told_how_to_take_them():
    with pytest.raises(PromptError, match=r"expected Questions, got Task. Take some of a task's, such as Questions.of"):
        sk.tasks.evaluate(None, sk.tasks.load("copy"), {"none": []})


def test_a_misspelt_name_of_a_module_is_answered_with_the_closest() -> None:
    import sinkscope as sk

    asked = {
        "sinkscope": (sk, "KeyMas", "KeyMass"), "sinkscope.metrics": (sk.metrics, "sinkrate", "sink_rate"),
        "sinkscope.plot": (sk.plot, "sinkmap", "sink_map"), "sinkscope.tasks": (sk.tasks, "englsh", "english"),
        "sinkscope.methods": (sk.methods, "zerotunin", "zerotuning"), 
        "sinkscope.edits": (sk.edits, "MaskKey", "MaskKeys"),
        "sinkscope.probes": (sk.probes, "Entrpy", "Entropy"),
    }  # fmt: skip
    for module, (where, name, meant) in asked.items():
        with pytest.raises(AttributeError) as raised:
            getattr(where, name)
        assert str(raised.value) == f"module {module!r} has no attribute {name!r}. Did you mean {meant!r}?"
    assert not hasattr(sk.metrics, "__wrapped__")
