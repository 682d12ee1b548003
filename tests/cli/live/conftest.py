"""A small language model of the zoo, a reading of it, and the page of both on a free port."""

import threading

import pytest

import sinkscope as sk
from sinkscope.cli.live.bench import LiveModel
from sinkscope.cli.live.server import PageServer
from sinkscope.report.build import PageOptions, build_page

TEXTS = [
    "def add(left, right):\n    return left + right\n\nclass Tree:\n    def __init__(self):\n        self.size = 0\n",
    "import os\n\nfor name in os.listdir('.'):\n    with open(name) as file:\n        print(file.read())\n",
]


@pytest.fixture(scope="session")
def model():
    return sk.load_model("zoo:lm-python")


@pytest.fixture(scope="session")
def reading(model):
    probes = [sk.KeyMass(), sk.Entropy(), sk.ValueNorm(), sk.MassiveActivations()]
    return sk.run(model, sk.Prompts.from_texts(TEXTS, model), probes)


@pytest.fixture(scope="session")
def bench(model, reading):
    return LiveModel(model, reading)


@pytest.fixture(scope="module")
def server(bench, reading):
    with PageServer(0) as found:
        found.page = build_page(reading, PageOptions(figures=["sink_map"], live=bench.facts()))
        found.answers |= {"/run": bench.try_text, "/rows": bench.rows}
        serving = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield found
        found.shutdown()
        serving.join()
