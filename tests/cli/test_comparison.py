"""``sinkscope compare`` gives what the library gives, and says what is missing."""

import numpy as np
import pandas as pd
import pytest

import sinkscope as sk
from sinkscope import schema, testing
from sinkscope.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids(np.random.default_rng(0).integers(5, 60, (6, 9)).tolist(), model)
    probes = [sk.KeyMass(), sk.ValueNorm()]
    sk.save(sk.run(model, prompts, probes), folder / "plain.nc")
    sk.save(sk.run(model, prompts, probes, [sk.ScaleKeys(0.5, keys="first")]), folder / "half.nc")
    sk.save(sk.sweep(model, prompts, {"none": [], "half": [sk.ScaleKeys(0.5)]}, probes), folder / "sweep.nc")
    edits = sk.grid(sk.ScaleKeys, gamma=[0.25, 0.5])
    sk.save(sk.sweep(model, prompts, edits, [sk.KeyMass()], baseline=True), folder / "grid.nc")
    return folder


def test_two_files_give_what_the_library_gives(files, capsys, tmp_path):
    names = [str(files / "half.nc"), str(files / "plain.nc")]
    arguments = ["--variable", "key_mass", "--select", "key=0", "--mean", "head", "-o", str(tmp_path / "table.csv")]
    assert main(["compare", *names, *arguments]) == 0
    said = capsys.readouterr().out
    edited, plain = (schema.open(name)["key_mass"].mean("head") for name in names)
    direct = sk.metrics.compare(edited, to=plain, sel={"key": 0})
    table = pd.read_csv(tmp_path / "table.csv")
    np.testing.assert_allclose(table["difference"], direct["difference"], rtol=1e-6)
    np.testing.assert_allclose(table["q_value"], direct["q_value"], rtol=1e-6)
    assert f"Corrected together: {direct.attrs['family']}." in said
    assert "half.nc less" in said


def test_a_sweep_is_compared_with_one_of_its_variants(files, capsys):
    assert main(["compare", str(files / "sweep.nc"), "none", "--variable", "key_mass", "--select", "key=0"]) == 0
    said = capsys.readouterr().out
    assert "\nhalf " in said
    assert "-0." in said


def test_one_number_is_compared_too(files, capsys, tmp_path):
    names = [str(files / "half.nc"), str(files / "plain.nc")]
    means = [part for dim in ("layer", "head") for part in ("--mean", dim)]
    target = tmp_path / "one.csv"
    assert main(["compare", *names, "--variable", "key_mass", "--select", "key=0", *means, "-o", str(target)]) == 0
    said = capsys.readouterr().out
    edited, plain = (schema.open(name)["key_mass"].mean(["layer", "head"]) for name in names)
    direct = sk.metrics.compare(edited, to=plain, sel={"key": 0})
    table = pd.read_csv(target)
    assert table["variable"].tolist() == ["key_mass"]
    np.testing.assert_allclose(table["difference"], [float(direct["difference"])], rtol=1e-6)
    assert "Corrected together: 1 test." in said


def test_a_grid_is_compared_with_its_baseline_and_drawn(files, capsys, tmp_path):
    target = tmp_path / "curve.png"
    arguments = ["--mean", "layer", "--mean", "head", "--select", "key=0", "--figure", str(target)]
    assert main(["compare", str(files / "grid.nc"), "baseline", *arguments]) == 0
    said = capsys.readouterr().out
    ds = schema.open(files / "grid.nc")
    direct = sk.metrics.compare(ds.mean(["layer", "head"]), to="baseline", variable="key_mass", sel={"key": 0})
    row = next(line for line in said.splitlines() if line.split()[:1] == ["0.25"])
    np.testing.assert_allclose(float(row.split()[1]), float(direct["difference"].sel(gamma=0.25)), rtol=1e-3)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(files / "grid.nc"), "basline"]) == 1
    assert "no variant of that name; the sweep has ['baseline']. Did you mean 'baseline'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("means", "drawn"), [(["layer", "head"], "effect_bars"), (["head"], "sweep_curve"), ([], "effect_map")]
)
def test_the_figure_follows_what_is_left(files, tmp_path, monkeypatch, means, drawn):
    seen = []
    real = getattr(sk.plot, drawn)
    monkeypatch.setattr(sk.plot, drawn, lambda *args, **kwargs: seen.append(kwargs["title"]) or real(*args, **kwargs))
    names = [str(files / "half.nc"), str(files / "plain.nc"), "--variable", "key_mass", "--select", "key=0"]
    kept = [part for dim in means for part in ("--mean", dim)]
    assert main(["compare", *names, *kept, "--figure", str(tmp_path / "a.svg")]) == 0
    assert seen == ["key_mass at key=0, less plain"]
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_what_no_figure_can_hold_leaves_no_file(files, tmp_path, capsys):
    names = [str(files / "half.nc"), str(files / "plain.nc"), "--variable", "key_mass"]
    assert main(["compare", *names, "--figure", str(tmp_path / "a.png")]) == 1
    assert "['layer', 'head', 'key'] can't be drawn together" in capsys.readouterr().err
    assert main(["compare", *names, "--figure", str(tmp_path / "a.gif")]) == 1
    assert "figures are png, pdf or svg" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["plain.nc", "none"],
            "there is no such file, and the reading is no sweep whose variant 'none' could be meant",
        ),
        (
            ["half.nc", "plain.nc", "--select", "key=zero"],
            "--select key=zero: key has no label 'zero'; its labels are [0",
        ),
        (["half.nc", "plain.nc", "--select", "0"], "write DIM=LABEL with one of the dims ['layer', 'head', 'key']."),
        (["half.nc", "plain.nc", "--mean", "kv_head"], "key_mass can be averaged over ['layer', 'head', 'key']."),
    ],
)
def test_what_cannot_be_compared_is_said(files, capsys, arguments, message):
    names = [str(files / name) if name.endswith(".nc") else name for name in arguments]
    assert main(["compare", *names, "--variable", "key_mass"]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_variable_is_named_where_there_are_several(files, capsys):
    assert main(["compare", str(files / "half.nc"), str(files / "plain.nc")]) == 1
    assert "--variable NAME. It holds ['key_mass', 'value_norm']" in capsys.readouterr().err
    assert main(["compare", str(files / "sweep.nc"), "non", "--variable", "key_mass"]) == 1
    assert "the sweep has ['none', 'half']. Did you mean 'none'?" in capsys.readouterr().err


def test_a_variable_that_is_not_there(files, capsys):
    assert main(["compare", str(files / "half.nc"), str(files / "plain.nc"), "--variable", "entropy"]) == 1
    assert "half.nc does not hold it. It holds [" in " ".join(capsys.readouterr().err.split())
