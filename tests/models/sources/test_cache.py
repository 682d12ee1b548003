"""The cache of converted models: whole entries or none, under two processes, a full disk, a kill and a damaged file."""

import errno
import hashlib
import json
import subprocess
import sys
import time

import pytest

from sinkscope.cli.app import main
from sinkscope.errors import ModelError
from sinkscope.models.sources import cache

DIGEST = hashlib.sha256(b"content").hexdigest()


def make(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return {"origin": "de-quantised from Q4_1", "file": "tiny.gguf", "source": "tiny"}


def test_an_entry_is_made_once(own_cache):
    made = []
    first = cache.obtain(DIGEST, lambda folder: made.append(folder) or make(folder))
    again = cache.obtain(DIGEST, lambda folder: made.append(folder) or make(folder))
    assert len(made) == 1
    assert first == again == cache.find("tiny")
    assert first.folder.parent == own_cache
    assert first.folder.name.startswith(DIGEST[:32])
    assert (first.folder / "model.safetensors").read_bytes() == b"x" * 1000
    assert cache.find("other") is None


def test_another_version_of_transformers_converts_again(monkeypatch):
    first = cache.obtain(DIGEST, make)
    monkeypatch.setattr(cache.transformers, "__version__", "99.0")
    assert cache.find("tiny") is None
    assert cache.obtain(DIGEST, make).folder != first.folder
    assert len(cache.entries()) == 2


@pytest.mark.parametrize("damage", ["absent", "short", "facts"])
def test_a_damaged_entry_is_made_again(damage):
    folder = cache.obtain(DIGEST, make).folder
    if damage == "absent":
        (folder / "model.safetensors").unlink()
    elif damage == "short":
        (folder / "model.safetensors").write_bytes(b"x")
    else:
        (folder / cache.FACTS).write_text("{")
    assert cache.entries() == []
    assert (cache.obtain(DIGEST, make).folder / "model.safetensors").stat().st_size == 1000


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_nothing(own_cache, error):
    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with pytest.raises((ModelError, KeyboardInterrupt)) as caught:
        cache.obtain(DIGEST, fail)
    if isinstance(error, OSError):
        assert f"the converted model cannot be written to {own_cache}: No space left on device." in str(caught.value)
        assert "SINKSCOPE_CACHE" in str(caught.value)
    assert [path.name for path in own_cache.iterdir() if path.is_dir()] == []
    assert cache.obtain(DIGEST, make).origin == "de-quantised from Q4_1"


def test_what_a_killed_process_left_goes_at_the_next_turn(own_cache):
    place = cache.obtain(DIGEST, make).folder
    left = own_cache / f".{place.name}.abc"
    place.rename(left)
    cache.obtain(DIGEST, make)
    assert not left.exists()


def test_a_place_that_cannot_be_written(own_cache, monkeypatch):
    own_cache.parent.mkdir(exist_ok=True)
    own_cache.write_text("a file")
    with pytest.raises(ModelError, match=r"cannot be written to .*cache: (File exists|Not a directory)"):
        cache.obtain(DIGEST, make)


def test_two_processes_convert_once(own_cache, tmp_path):
    script = f"""
import time, pathlib
from sinkscope.models.sources import cache
def make(folder):
    with open({str(tmp_path / "made")!r}, "a") as file:
        file.write("once ")
    time.sleep(1)
    (folder / "a").write_text("whole")
    return {{}}
pathlib.Path({str(tmp_path)!r}, "ready" + str(time.time_ns())).touch()
while len(list(pathlib.Path({str(tmp_path)!r}).glob("ready*"))) < 2:
    time.sleep(.01)
print((cache.obtain({DIGEST!r}, make).folder / "a").read_text())
"""
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == ["whole\n", "whole\n"]
    assert (tmp_path / "made").read_text() == "once "


def test_the_command_lists_and_clears(own_cache, capsys):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{own_cache} (SINKSCOPE_CACHE puts it elsewhere):\n  nothing\n"
    cache.obtain(DIGEST, make)
    (own_cache / ".half").mkdir()
    (own_cache / "mine").mkdir()
    assert main(["cache"]) == 0
    assert "0 MB  tiny.gguf  de-quantised from Q4_1" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"Freed 0 MB in {own_cache}.\n"
    assert [path.name for path in own_cache.iterdir()] == ["mine"]  # not made by us


def test_facts_name_every_file(own_cache):
    entry = cache.obtain(DIGEST, make)
    facts = json.loads((entry.folder / cache.FACTS).read_text())
    assert facts["files"] == {"model.safetensors": 1000}
    assert time.time() - entry.folder.stat().st_mtime < 60
