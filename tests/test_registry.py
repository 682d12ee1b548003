"""The one list of what can be added: names, errors, and packages that add to it."""

import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

import sinkscope as sk
from sinkscope import registry
from sinkscope.errors import EditError, MetricError, ProbeError, PromptError, SchemaError, SinkscopeError

ROOT = Path(__file__).parents[1]
PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from sinkscope.probes import Probe
from sinkscope.references import Reference
from sinkscope.registry import method, task
from sinkscope.report import figure
from sinkscope.schema import Variable
from sinkscope.edits import ScaleKeys


@dataclass(frozen=True)
class StreamMean(Probe):
    """Mean of the residual stream over its width."""

    variables: ClassVar = {"stream_mean": Variable(("prompt", "site", "key"), "activation", "mean over the width")}
    papers: ClassVar = ("sun2024", Reference("me2026", "A paper of one's own", "Me", 2026))

    def sites(self, tower):
        return tower.site_names

    def at_site(self, hidden, context):
        return {"stream_mean": hidden.float().mean(-1)}


@dataclass(frozen=True, repr=False)
class HalveFirst(ScaleKeys):
    """Halve the weight of the first key."""

    gamma: float = 0.5


@figure("The mean of the stream", needs=["stream_mean"])
def stream_mean_map(ds, sinks):
    """One row a site."""
    import matplotlib.pyplot as plt

    axes = plt.figure().add_subplot()
    axes.imshow(ds["stream_mean"][0])
    return axes


@method()
def halve(model, prompts):
    """Run with half the weight on the first key."""


@task()
def riddles(*, calibration, test, seed):
    """Riddles."""
'''


@pytest.fixture
def site(tmp_path):
    """A folder as pip makes it: a module, and metadata that names it in the entry-point group; and a broken one."""
    for name, code in (("sink_extras", PLUGIN), ("sink_broken", "raise RuntimeError('no such chip')\n")):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text(f"[sinkscope]\nall = {name}\n", encoding="utf-8")
    return tmp_path


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = f"{site}:{ROOT}"
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def test_names_of_every_kind():
    assert {"KeyMass", "Entropy", "AttentionMap"} <= set(registry.names("probe"))
    assert {"MaskKeys", "ScaleKeys"} <= set(registry.names("edit"))
    assert {"sink_rate", "value_drain"} <= set(registry.names("metrics"))
    assert registry.names("figure")[0] == "sink_map"
    assert {"zerotune", "var", "sads", "act"} <= set(registry.names("method"))
    assert {"brackets", "sst2"} <= set(registry.names("task"))
    assert {entry.kind for entry in registry.entries()} >= {"probe", "edit", "metric", "figure", "method", "task"}


def test_everything_has_a_line_about_it():
    assert [entry.name for entry in registry.entries() if len(entry.summary) < 10] == []


@pytest.mark.parametrize("name", ["KeyMass", "key-mass", "key_mass", "keymass"])
def test_a_name_is_found_however_it_is_written(name):
    if name == "keymass":
        with pytest.raises(ProbeError, match=r"probe 'keymass': .* Did you mean 'KeyMass'\?"):
            registry.get("probe", name)
        return
    assert registry.get("probe", name) is sk.KeyMass


@pytest.mark.parametrize(
    ("kind", "name", "error", "meant"),
    [
        ("probe", "entropi", ProbeError, "Entropy"), ("edit", "mask-key", EditError, "MaskKeys"),
        ("metric", "sinkrate", MetricError, "sink_rate"), ("figure", "sink-mapp", SchemaError, "sink_map"),
        ("method", "zerotuning", SinkscopeError, "zerotune"), ("task", "bracket", PromptError, "brackets"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_the_error_of_its_kind_and_offers_the_closest(kind, name, error, meant):
    with pytest.raises(
        error, match=rf"^{kind} '{name}': there is no such {kind}\. There are .* Did you mean '{meant}'"
    ):
        registry.get(kind, name)


def test_an_unknown_kind():
    with pytest.raises(
        SinkscopeError, match=r"kind 'prob': there is no such kind\. Kinds are probe, statistic, edit, .*'probe'\?"
    ):
        registry.entries("prob")


def test_a_taken_name_is_refused_and_a_class_made_again_takes_its_own_place():
    def make(module):
        return dataclass(frozen=True)(type("Twice", (sk.probes.Probe,), {"__module__": module}))

    make("here")
    second = make("here")
    assert registry.get("probe", "twice") is second
    with pytest.raises(ProbeError, match=r"probe 'Twice': here has a probe of this name already\. Choose another"):
        make("there")
    with pytest.raises(ProbeError, match=r"probe 'KeyMass': sinkscope\.probes\.attention has a probe of this name"):
        type("KeyMass", (sk.probes.Probe,), {"__module__": "here"})


def test_a_private_class_is_not_listed():
    type("_Hidden", (sk.probes.Probe,), {})
    assert "_Hidden" not in registry.names("probe")


def test_a_table_is_a_mapping():
    table = registry.Table("edit")
    assert table["mask-keys"] is sk.MaskKeys
    assert "mask-keys" in table
    assert "mask-key" not in table
    assert len(table) == len(list(table)) == len(registry.names("edit"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sk.AttentionMap(),
            r"AttentionMap\(\): missing a required argument: 'layers'\. It takes layers, heads",
        ),
        (lambda: sk.KeyMass(kyes=[0]), r"KeyMass\(\): got an unexpected .* 'kyes'\. It takes keys.*mean 'keys'\?"),
        (lambda: sk.Entropy(3), r"Entropy\(\): too many positional arguments\. It takes no arguments\."),
        (lambda: sk.AttentionMap([1.5], [0]), r"AttentionMap\(layers=\[1\.5\]\): whole numbers are needed"),
        (lambda: sk.AttentionMap([0], True), r"AttentionMap\(heads=True\): whole numbers are needed"),
        (lambda: sk.AttentionMap("0", [0]), r"AttentionMap\(layers='0'\): whole numbers are needed"),
        (lambda: sk.SinkDims([1.5]), r"SinkDims\(dims=\[1\.5\]\): whole numbers are needed"),
        (lambda: sk.Logits([0.5]), r"Logits\(positions=\[0\.5\]\): whole numbers are needed"),
        (lambda: sk.MassiveActivations(2.5), r"MassiveActivations\(top=2\.5\): whole numbers are needed"),
    ],
)
def test_wrong_arguments_are_errors_of_ours(make, message):
    with pytest.raises(ProbeError, match=message):
        make()


def test_arguments_are_shown_to_completion():
    import inspect

    assert list(inspect.signature(sk.AttentionMap).parameters) == ["layers", "heads"]


def test_the_command_line_sees_a_package_that_adds_to_it(site):
    listed = python(site, "-m", "sinkscope", "list")
    assert listed.returncode == 0, listed.stderr
    parts = {part.partition(":")[0]: part.splitlines() for part in re.split(r"\n(?=[A-Z])", listed.stdout)}
    assert list(parts) == ["Probes", "Edits", "Metrics", "Figures", "Methods", "Tasks", "Models"]
    for kind, name in (("Probes", "stream-mean"), ("Edits", "halve-first"), ("Figures", "stream-mean-map"),
                       ("Methods", "halve"), ("Tasks", "riddles")):  # fmt: skip
        line = next(line for line in parts[kind] if line.split()[:1] == [name])
        assert line.endswith("[sink_extras]")
    warned = "sinkscope: warning: the plug-in 'all' of the package sink_broken was left out: RuntimeError: no such chip"
    assert listed.stderr.count(warned) == 1


def test_a_package_takes_part_in_a_run_from_the_command_line(site, tmp_path):
    reading, picture = tmp_path / "a.nc", tmp_path / "a.svg"
    arguments = ["--ids", "1,5,6,7", "--probe", "stream-mean", "--edit", "halve-first", "-o", str(reading)]
    done = python(site, "-W", "ignore", "-m", "sinkscope", "run", "zoo:bb-1l", *arguments)
    assert done.returncode == 0, done.stderr
    drawn = python(site, "-W", "ignore", "-m", "sinkscope", "plot", "stream-mean-map", str(reading), "-o", str(picture))
    assert drawn.returncode == 0, drawn.stderr
    assert picture.read_bytes().startswith(b"<?xml")
    ds = sk.open(reading)
    assert sk.schema.variables(ds)["stream_mean"].reference == "sun2024, me2026"
    assert "A paper of one's own" in sk.cite(ds)
    assert "Massive Activations in Large Language Models" in sk.cite(ds)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, sinkscope.registry as r; assert not {'numpy', 'torch', 'xarray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
