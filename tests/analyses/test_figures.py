"""The command that runs all analyses: what is done is skipped, what failed is told."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("figures", Path(__file__).parents[2] / "analyses" / "figures.py")
figures = importlib.util.module_from_spec(spec)
sys.modules["figures"] = figures
spec.loader.exec_module(figures)

GOOD = '''"""What it asks."""
import shared
from sinkscope.analysis import Study

with Study(__doc__, paper="gu2025", model=()) as study:
    study.subject = "planted"
    study.claim("Fig. 1", "a", paper="b", found=shared.WORD, agrees=True)
'''


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "analyses" / "gu2025"
    folder.mkdir(parents=True)
    (folder / "shared.py").write_text('WORD = "once"\n')
    (folder / "good.py").write_text(GOOD)
    return tmp_path / "analyses"


def run(root, *options):
    return figures.main([*options, "--output", str(root.parent / "out")], root)


def test_what_is_done_and_unchanged_is_skipped_and_times_are_printed(root, capsys):
    assert run(root) == 0
    first = capsys.readouterr().out
    assert "0 of 1 analyses are done and unchanged" in first
    assert first.splitlines()[1].startswith("[1/1] gu2025/good.py")
    assert first.splitlines()[1].endswith(" s  done")
    assert run(root) == 0
    assert capsys.readouterr().out.startswith("1 of 1 analyses are done and unchanged\n0 ran, 0 failed")
    (root / "gu2025" / "shared.py").write_text('WORD = "again"\n')
    assert run(root) == 0
    assert "0 of 1 analyses" in capsys.readouterr().out
    claims = root.parent / "out" / "gu2025" / "good" / "claims.json"
    assert json.loads(claims.read_text())["claims"][0]["found"] == "again"
    claims.write_text(json.dumps(json.loads(claims.read_text()) | {"quick": True}))
    assert not figures.done(root / "gu2025" / "good.py", root.parent / "out")


def test_a_script_that_fails_does_not_stop_the_others_and_says_where_to_look(root, capsys):
    (root / "gu2025" / "bad.py").write_text("# Study(\nraise ValueError('no such thing')\n")
    assert run(root, "--jobs", "2") == 1
    out = capsys.readouterr().out
    assert "failed (1): see " in out
    assert "log.txt: ValueError: no such thing" in out
    assert "1 ran, 1 failed" in out
    assert (root.parent / "out" / "gu2025" / "good" / "claims.json").is_file()


def test_a_name_that_is_not_there_is_refused_with_those_that_are(root, capsys):
    with pytest.raises(SystemExit):
        run(root, "sun2024")
    assert "no analysis begins with sun2024; there are gu2025/good.py" in capsys.readouterr().err
