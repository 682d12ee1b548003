"""Advice of the library in words of the command line: figures and probes by their names there, and options."""

import warnings
from pathlib import Path

import pytest
import xarray as xr
from made_reading import fake_reading

import sinkscope as sk
from sinkscope.cli import main
from sinkscope.cli.words import spoken
from sinkscope.report import available
from sinkscope.report.runs import MAX_RUNS


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Save a reading, run a command on it that must fail, and return what it says."""

    def call(ds: xr.Dataset, command: str, *rest: str) -> str:
        path = sk.save(ds, tmp_path / "r.nc", overwrite=True)
        arguments = [*command.split(), str(path), "--output", str(tmp_path / "out.png"), *rest]
        assert main(arguments) == 1
        return capsys.readouterr().err

    return call


def test_a_figure_is_named_as_it_is_typed(said) -> None:
    text = said(fake_reading(), "plot sink-profle")
    assert "figure 'sink-profle': there is no such figure." in text
    assert "'sink-map'" in text
    assert "_" not in text.partition("Use one of")[2]
    assert "sink-profile" in text.partition("mean")[2]


def test_a_probe_is_an_option(said) -> None:
    text = said(fake_reading().drop_vars("entropy"), "plot entropy-map")
    assert text == (
        "sinkscope: figure 'entropy-map' needs ['entropy'], which this reading lacks. Measure with --probe entropy.\n"
    )
    text = said(fake_reading(), "plot attention-map")
    assert 'Measure with --probe "attention-map layers=0 heads=0".' in text


def test_show_says_options_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sk.save(fake_reading().drop_vars("key_mass"), tmp_path / "r.nc")
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Measure with --probe key-mass" in shown
    assert "KeyMass()" not in shown


def test_selections_are_options(said, tmp_path: Path) -> None:
    many = xr.concat([fake_reading((12, 14), 2, 2, 1)] * (MAX_RUNS + 1), xr.DataArray(range(MAX_RUNS + 1), dims="step"))
    text = said(many, "report")
    assert "report: this sweep has 65 variants along ['step']" in text
    assert "--select step=LABEL" in text
    assert "ds." not in text
    one, swept = fake_reading((12, 14), 2, 2, 1), many.isel(step=[0, 1])
    path = sk.save(swept, tmp_path / "swept.nc")
    text = said(one, "report", "--against", str(path))
    assert "report --against: this reading has the dimension 'step' in front. Select one: --select step=0." in text


def test_other_words_are_left_alone() -> None:
    for text in ("Nothing of this kind.", "run 'sink_map' again", str(available(fake_reading()))):
        assert spoken(text) == text


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ("MaskKeys(keys='frst'): no such role.", "mask-keys keys=frst: no such role."),
        ("MaskKeys('image') changes nothing", "mask-keys keys=image changes nothing"),
        ("MaskKeys(layers=99): Use layers=range(6).", "mask-keys layers=99: Use layers=0:6."),
        ("AttentionMap(heads=[9, 10]): heads 0..3.", "attention-map heads=9,10: heads 0..3."),
        ("a.nc: the file exists. Pass overwrite=True (--overwrite) to", "a.nc: the file exists. Pass --overwrite to"),
        ("load_model('./x'): there is no such folder.", "model './x': there is no such folder."),
        (
            "load_model(device='vulcan'): refused. Use device='cpu'.",
            "--device vulcan: refused. Use --device cpu.",
        ),
        ("Run them with batch_size=1.", "Run them with --batch-size 1."),
        ("run(batch_size=0): give 1.", "run --batch-size 0: give 1."),
        ("sweep(executor=...): workers.", "sweep --executor: workers."),
        ("a user's Thing(keys='x') is left", "a user's Thing(keys='x') is left"),
    ],
)
def test_calls_are_written_as_they_are_typed(python: str, typed: str) -> None:
    assert spoken(python) == typed


def test_show_says_which_edits_were_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = fake_reading().assign_attrs(edits='[{"edit": "MaskKeys", "keys": "first", "layers": [2, 3]}]')
    assert main(["show", str(sk.save(edited, tmp_path / "r.nc"))]) == 0
    assert "Edited: mask-keys keys=first layers=2,3." in capsys.readouterr().out
    assert main(["show", str(sk.save(fake_reading(), tmp_path / "plain.nc"))]) == 0
    assert "Edited" not in capsys.readouterr().out


def test_a_warning_is_one_line_as_an_error_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = fake_reading((40, 25), 2, 2, 1)
    paths = [str(sk.save(few, tmp_path / f"{name}.nc")) for name in ("a", "b")]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["compare", *paths, "--variable", "key_mass", "--select", "key=0"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("sinkscope: warning: compare: with n = 2 pairs no p- or q-value can be below 0.5")
    assert said.count("\n") == 1
    assert ".py" not in said


def test_show_counts_indices_and_averages_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = fake_reading((12, 14), 2, 2, 1)
    one["top_dim"].values[..., 0] = 17
    one["top_dim"].values[0, 0, 0] = 3
    swept = xr.concat([one, one], xr.DataArray(["baseline", "masked"], dims="edit", name="edit"))
    assert main(["show", str(sk.save(swept, tmp_path / "r.nc"))]) == 0
    shown = capsys.readouterr().out
    assert "of indices the most frequent one with its share." in shown
    assert shown.count("17 (90%)") == 2
    assert f"{float(one['top_value'].mean()):.4g}" in shown
