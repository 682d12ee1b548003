"""What a machine does to a program: killed at any moment, a folder of another user, two processes on one cache.

Each child is a fork of this process, so that fifty kills cost no fifty imports.
"""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from hostile.sizes import LONG
from sinkscope import files, testing

KILLS = 50 if LONG else 6
NOBODY = 65534


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, *range(5, 5 + n)] for n in range(2, 14)], model)
    return model, prompts


def fork(work):
    """Run ``work`` in a child and return its process id; its exit code is 0, or 1 after an error of ours."""
    child = os.fork()
    if child:
        return child
    code = 9  # anything raw
    try:
        work()
        code = 0
    except sk.SinkscopeError:
        code = 1
    finally:
        os._exit(code)


def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def numbers(reading):
    return {name: array.values.tobytes() for name, array in reading.data_vars.items()}


def read(case, cache=None):
    return sk.run(*case, [sk.KeyMass(), sk.Entropy()], [sk.MaskKeys("first", layers=[1])], cache=cache)


def swept(case, cache=None):
    variants = {"none": [], "mask": [sk.MaskKeys("first", layers=[1])], "scale": [sk.ScaleKeys(0.5)]}
    return sk.sweep(*case, variants, [sk.KeyMass()], cache=cache)


@pytest.mark.parametrize("call", [read, swept])
def test_killed_at_random_moments_and_resumed(case, tmp_path, call):
    started = time.monotonic()
    whole = numbers(call(case))
    took, rng = time.monotonic() - started, random.Random(0)
    for _ in range(KILLS):
        child = fork(lambda: call(case, tmp_path))
        time.sleep(rng.random() * 1.5 * took)
        os.kill(child, signal.SIGKILL)
        assert code_of(child) in (0, -signal.SIGKILL)
        if rng.random() < 0.3:  # begin again now and then: a full cache leaves nothing to kill
            assert numbers(call(case, tmp_path)) == whole
            for part in tmp_path.iterdir():
                part.unlink()
    assert numbers(call(case, tmp_path)) == whole


def test_a_save_that_is_killed_leaves_the_old_or_the_new(case, tmp_path):
    old, path, rng = read(case), tmp_path / "a.nc", random.Random(0)
    new = old.assign_attrs(note="new")
    started = time.monotonic()
    sk.save(old, path)
    took = time.monotonic() - started
    for _ in range(KILLS):
        child = fork(lambda: [sk.save(new, path, overwrite=True) for _ in range(3)])
        time.sleep(rng.random() * 3 * took)
        os.kill(child, signal.SIGKILL)
        code_of(child)
        xr.testing.assert_equal(sk.open(path), old)
        left = [part.name for part in tmp_path.iterdir() if part != path]
        assert all(name.startswith(".") and name.endswith(".tmp") for name in left)


@pytest.fixture
def folder():
    """A folder that other users reach: pytest keeps its own to their owner."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_folder_that_another_user_may_only_read(case, folder):
    reading = read(case)
    sk.save(reading, folder / "a.nc")
    sk.save(reading, folder / "owners.nc")
    testing.tiny("llama").save_pretrained(folder / "model")
    for hidden in (folder / "owners.nc", folder / "model" / "config.json"):
        os.chmod(hidden, 0o000)
    os.chmod(folder, 0o555)
    before = {part.name: part.stat().st_mtime_ns for part in folder.iterdir()}

    def as_nobody(work):
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()

    def opened():
        assert numbers(sk.open(folder / "a.nc")) == numbers(reading)

    refused = (
        lambda: sk.open(folder / "owners.nc"),
        lambda: sk.load_model(folder / "model"),
        lambda: sk.save(reading, folder / "b.nc"),
        lambda: sk.save(reading, folder / "a.nc", overwrite=True),
        lambda: read(case, folder),
        lambda: swept(case, folder / "inner"),
        lambda: files.write(folder / "a.html", "what a report writes"),
    )
    assert code_of(fork(lambda: as_nobody(opened))) == 0
    assert [code_of(fork(lambda work=work: as_nobody(work))) for work in refused] == [1] * len(refused)
    assert {part.name: part.stat().st_mtime_ns for part in folder.iterdir()} == before
    opened()
    os.chmod(folder, 0o755)


@pytest.mark.parametrize("call", [read, swept])
def test_two_processes_on_one_cache(case, tmp_path, call):
    whole = numbers(call(case))
    for attempt in range(10 if LONG else 2):
        folder = tmp_path / str(attempt)

        def same(folder=folder):
            np.testing.assert_equal(numbers(call(case, folder)), whole)

        children = [fork(same) for _ in range(2)]
        assert [code_of(child) for child in children] == [0, 0]
        assert numbers(call(case, folder)) == whole
