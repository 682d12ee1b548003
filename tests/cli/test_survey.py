"""``sinkscope survey`` and ``sinkscope merge``, from a file of prompts to a picture."""

from pathlib import Path

import pytest

import sinkscope as sk
from sinkscope.cli import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "code.txt"
    path.write_text("".join(f"def function_{i}(value):  # number {i}, of a list\n" for i in range(8)))
    return path


def test_shards_are_read_joined_told_and_drawn(corpus, tmp_path, capsys):
    common = ["zoo:lm-python", str(corpus), "--probe", "key-mass", "--block", "2"]
    for k in (1, 2):
        assert main(["survey", *common, "--shard", f"{k}/2", "-o", str(tmp_path / f"{k}.nc")]) == 0
    assert "4 prompts" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.state"))
    joined = tmp_path / "all.nc"
    assert main(["merge", str(tmp_path / "2.nc"), str(tmp_path / "1.nc"), "-o", str(joined)]) == 0
    direct = sk.survey(sk.load_model("zoo:lm-python"), corpus, sk.KeyMass(), settings=sk.SurveySettings(block=2))
    assert sk.open(joined)["key_mass_mean"].equals(direct["key_mass_mean"])
    assert main(["show", str(joined)]) == 0
    assert "The first token gets" in capsys.readouterr().out
    assert main(["show", str(joined), "--table", "sink_rate", "--rows", "2"]) == 0
    assert main(["plot", "sink-rate-map", str(joined), "-o", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_shards_that_overlap_are_refused_by_file(corpus, tmp_path, capsys):
    path = tmp_path / "a.nc"
    assert main(["survey", "zoo:lm-python", str(corpus), "--probe", "entropy", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["merge", str(path), str(path), "-o", str(tmp_path / "b.nc")]) == 1
    assert f"merge: {path} and {path} overlap: 1 blocks are in both" in capsys.readouterr().err
    assert not (tmp_path / "b.nc").exists()
