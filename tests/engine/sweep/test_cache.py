"""A killed sweep goes on where it was and gives the same numbers bit for bit."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.sweep.runner import Runner

SCRIPT = """
import sys
import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.sweep import runner
runner.TOKENS["cpu"] = 24
model = sk.load_model(testing.tiny("llama"))
rows = testing.text_ids(model.model, batch=3, length=9)
prompts = sk.Prompts.from_ids([r[:n].tolist() for r, n in zip(rows, (9, 6, 7), strict=True)], model)
grid = sk.grid(sk.ScaleKeys, gamma=[0.3, 2.0], layers=range(3), heads=range(4))
found = sk.sweep(model, prompts, grid, [sk.TokenLoss(), sk.KeyMass()], cache=sys.argv[1], executor="serial")
sk.save(found, sys.argv[2])
"""


def start(cache, output):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(cache), str(output)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder / "cache", folder / "out.nc").wait() == 0
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.nc")}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_killed_and_resumed_is_bit_identical(tmp_path, whole, share):
    total = len(files(whole / "cache"))
    assert total == 72
    cache = tmp_path / "cache"
    running = start(cache, tmp_path / "out.nc")
    while running.poll() is None and len(list(cache.glob("*.nc"))) < share * total:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = files(cache)
    assert share * total <= len(done) < total
    assert not (tmp_path / "out.nc").exists()
    before = {name: os.stat(cache / name).st_mtime_ns for name in done}
    assert start(cache, tmp_path / "out.nc").wait() == 0
    assert files(cache) == files(whole / "cache")
    assert {name: os.stat(cache / name).st_mtime_ns for name in done} == before
    first, second = sk.open(whole / "out.nc"), sk.open(tmp_path / "out.nc")
    first.attrs.pop("created"), second.attrs.pop("created")
    assert first.identical(second)


def sweep_of(folder, **options):
    model = sk.load_model(testing.tiny("llama", options.pop("seed", 0)))
    prompts = sk.Prompts.from_ids(options.pop("ids", [[1, 5, 9, 12]]), model)
    variants = options.pop("variants", {"mask": [sk.MaskKeys("first")]})
    return sk.sweep(model, prompts, variants, options.pop("probes", [sk.TokenLoss()]), cache=folder, **options)


def test_what_is_found_again_and_what_is_not(tmp_path, monkeypatch):
    passes = []
    compute = Runner.compute
    monkeypatch.setattr(Runner, "compute", lambda self, *args: passes.append(1) or compute(self, *args))

    def count(**options):
        passes.clear()
        sweep_of(tmp_path, **options)
        return len(passes)

    assert count() == 1
    assert count() == 0
    assert count(variants={"another name": [sk.MaskKeys("first")]}) == 0
    assert count(variants={"mask": [sk.MaskKeys("first")], "more": [sk.MaskKeys("first", layers=[1])]}) == 1
    assert count(seed=1) == 1
    assert count(ids=[[1, 5, 9, 13]]) == 1
    assert count(probes=[sk.KeyMass()]) == 1
    assert count(probes=[sk.Logits(positions=[0])]) == 1
    assert count(probes=[sk.Logits(positions=[1])]) == 1
    assert count() == 0


def test_damaged_result_is_computed_again(tmp_path):
    first = sweep_of(tmp_path)
    [path] = tmp_path.glob("*.nc")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    second = sweep_of(tmp_path)
    np.testing.assert_array_equal(first["token_loss"].values, second["token_loss"].values)
    assert path.read_bytes() == whole


def test_cache_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(sk.OutputError, match=r"this is a file\. Name a folder for the finished results"):
        sweep_of(path)
