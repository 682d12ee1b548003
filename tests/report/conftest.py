"""Made readings, and what a written page carries."""

import re

import pytest
from made_reading import fake_reading

from sinkscope.report.payload import array_of, unpack


class PageData:
    """What a written page carries for its script."""

    def __init__(self, path):
        packed = re.search(r'<script id="data" type="text/plain">(.*?)</script>', path.read_text("utf-8"), re.S)[1]
        self.packed = packed
        self.header, self.content = unpack(packed)

    def array(self, reference):
        return array_of(reference, self.content)


@pytest.fixture(scope="session")
def build():
    return fake_reading


@pytest.fixture(scope="session")
def data_of():
    return PageData


@pytest.fixture
def reading():
    return fake_reading()


@pytest.fixture
def evenly_spread():
    return fake_reading(sink=False)
