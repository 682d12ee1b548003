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


def test_a_variable_that_is_not_there(files, capsys):
    assert main(["compare", str(files / "half.nc"), str(files / "plain.nc"), "--variable", "entropy"]) == 1
    assert "half.nc does not hold it. It holds [" in " ".join(capsys.readouterr().err.split())
