"""One base class for every error, so that a caller can catch them all."""

import inspect

import pytest

from sinkscope import errors
from sinkscope.errors import EditError, EditHasNoEffect, ModelError, SinkscopeError, UnsupportedModelError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_one_of_ours_says_what_it_is_and_keeps_its_message(cls):
    assert issubclass(cls, SinkscopeError | UserWarning)
    assert cls.__doc__
    assert str(cls("what was asked")) == "what was asked"
    assert not issubclass(cls, ValueError | KeyError)


def test_the_narrow_ones_are_kinds_of_the_wide_ones():
    assert issubclass(UnsupportedModelError, ModelError)
    assert issubclass(EditHasNoEffect, EditError)
    assert len(CLASSES) >= 10
