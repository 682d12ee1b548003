"""The command line from a model folder to a report: what it prints, what it writes, how it refuses."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sinkscope as sk
from sinkscope import schema
from sinkscope.cli import main
from sinkscope.cli.app import app
from sinkscope.cli.options import split_text
from sinkscope.report import FIGURES
from sinkscope.testing import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def readings(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readings") / "readings.nc"
    assert main(["run", str(folder), "--ids", "1,5,9,12,20,7", "--ids", "1,8,30", "--output", str(path)]) == 0
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with the code given, and return its one line."""

    def call(code: int, *arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("sinkscope: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return call


def test_a_command_that_is_interrupted_says_so(
    refused: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sinkscope.engine.run.read_batch", interrupted)
    said = refused(130, "run", folder, "--ids", "1,5", "--output", tmp_path / "a.nc")
    assert said == "sinkscope: interrupted; no half file is left.\n"
    assert list(tmp_path.iterdir()) == []


def test_run_gives_what_the_library_gives(folder: Path, readings: Path) -> None:
    found = schema.open(readings)
    model = sk.load_model(folder)
    direct = sk.run(model, sk.Prompts.from_ids([[1, 5, 9, 12, 20, 7], [1, 8, 30]], model), [sk.KeyMass()])
    np.testing.assert_allclose(found["key_mass"], direct["key_mass"], atol=1e-6)
    assert {"key_mass", "role_share", "entropy", "value_norm", "residual_norm", "top_value"} <= set(found)
    assert json.loads(found.attrs["probes"])[0]["probe"] == "KeyMass"


def test_run_takes_probes_edits_and_a_batch_size(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.nc"
    arguments = ["--ids", "1,5,9,12", "--ids", "1,3,4", "--probe", "key-mass", "--probe", "logits positions=last"]
    edit = ["--edit", "mask-keys keys=first layers=1:3"]
    assert main(["run", str(folder), *arguments, *edit, "--batch-size", "2", "-o", str(path)]) == 0
    found = schema.open(path)
    assert set(found) == {"key_mass", "logits"}
    assert json.loads(found.attrs["edits"])[0]["edit"] == "MaskKeys"
    # Where the first key is hidden it gets nothing, except from the first query, which sees no other key.
    assert float(found["key_mass"].sel(prompt=0, layer=1, key=0).max()) <= 1 / 4 + 1e-6
    assert f"Next: sinkscope show {path}" in capsys.readouterr().out


def test_a_variable_without_a_number_is_warned_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--ids", "1,5,9,12", "--probe", "key-mass", "--probe", "max-attention keys=image"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["run", str(folder), *asked, "-o", str(tmp_path / "a.nc")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("sinkscope: warning: max_attention: no number in it.")


def test_options_from_a_toml_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    config = tmp_path / "run.toml"
    config.write_text(f'[run]\nids = ["1,2,3"]\nprobe = ["entropy"]\noutput = "{path}"\n', encoding="utf-8")
    assert main(["run", str(folder), "--config", str(config)]) == 0
    assert set(schema.open(path)) == {"entropy"}
    assert main(["run", str(folder), f"--config={config}", "--overwrite", "--probe", "key-mass"]) == 0
    assert set(schema.open(path)) == {"key_mass"}, "the command line wins over the file"
    assert app.config is not None
    assert main(["cite", str(path)]) == 0
    assert app.config == (), "a configuration does not outlive its command"


def test_show_tells_the_findings(readings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(readings)]) == 0
    said = capsys.readouterr().out
    told, _ = sk.report.findings(schema.open(readings))
    assert len(told) >= 4
    assert all(finding.heading in said and finding.text in said for finding in told)


def test_show_prints_the_largest_rows_first(readings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(readings), "--table", "key_mass", "--rows", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split()[-1]) for line in lines[1:4]]
    mass = schema.open(readings)["key_mass"].values
    np.testing.assert_allclose(values, np.sort(mass[np.isfinite(mass)])[::-1][:3], rtol=1e-3)
    assert lines[4] == f"... {int(np.isfinite(mass).sum()) - 3} more rows; --rows prints more, --output saves all."


def test_rows_are_counted_from_one(refused: Callable[..., str], readings: Path) -> None:
    assert "show --rows -1: print at least one row." in refused(
        1, "show", readings, "--table", "key_mass", "--rows", "-1"
    )


def test_show_saves_a_table(readings: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert main(["show", str(readings), "--table", "value_norm", "--output", str(path), "--select", "layer=1"]) == 0
    table = pd.read_csv(path)
    expected = schema.to_dataframe(schema.open(readings).sel(layer=[1]), "value_norm")
    np.testing.assert_allclose(table["value_norm"], expected["value_norm"], rtol=1e-5)
    assert set(table["layer"]) == {1}


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_writes_each_kind_of_file(readings: Path, tmp_path: Path, ending: str, magic: bytes) -> None:
    path = tmp_path / f"a.{ending}"
    assert main(["plot", "sink-map", str(readings), "-o", str(path), "--style", "slide"]) == 0
    assert path.read_bytes().startswith(magic)


def test_the_help_of_plot_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "--help"]) == 0
    words = capsys.readouterr().out.replace("│", " ").split()
    assert {name.replace("_", "-") for name in FIGURES} <= {word.strip(",.") for word in words}


def test_report_is_written(readings: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    assert main(["report", str(readings), "-o", str(path), "--title", "Mine & <yours>"]) == 0
    page = path.read_text(encoding="utf-8")
    assert "<title>Mine &amp; &lt;yours&gt;" in page


def test_cite_prints_bibtex(readings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", str(readings)]) == 0
    assert capsys.readouterr().out == sk.cite(schema.open(readings))


def test_models_lists_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in sk.testing.names())
    assert all(f"zoo:{entry.name}" in said for entry in sk.zoo.entries())
    assert main(["models", str(folder)]) == 0
    assert "tiny-llama" in capsys.readouterr().out
    assert main(["models", str(folder), "--verify"]) == 0
    assert "verified         against eager on " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "x"], "run: no prompts. Give --text, --text-file, --ids or --image."),
        (["run", "x", "--ids", "1", "--text", "a"], "--ids cannot be mixed with --text"),
        (["run", "x", "--image", "no.png"], "--image no.png: no such file."),
        (["run", "x", "--text", "a", "--output", "no/where.nc"], "no/where.nc: the folder no does not exist."),
        (["run", "x", "--text", "a", "--probe", "foo"], "probe 'foo': there is no such probe."),
        (["run", "x", "--text", "a", "--edit", "foo"], "edit 'foo': there is no such edit."),
        (["run", "x", "--text-file", "no.txt"], "--text-file no.txt: it cannot be read: No such file or directory."),
        (["show", "no.nc"], "no.nc: no such file. Readings are written by"),
        (["show", "."], ".: this is a folder. Name a file."),
        (["show", "/dev/null"], "/dev/null: this is a device or a pipe. Name a file."),
        (["show", "no.nc", "--output", "a.csv"], "name the variable to save, such as --table key_mass."),
        (["plot", "sink-map", "no.nc", "-o", "a.jpg"], "figures are png, pdf or svg."),
        (["run", "--config", "no.toml"], "--config no.toml: no such file."),
        (["models", "./nowhere"], "model './nowhere': there is no such folder."),
    ],
)
def test_errors_are_one_line(
    refused: Callable[..., str], arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(1, *arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "requires an argument"),
        (["run", "x", "--txt", "a"], "Unknown option: --txt. Did you mean --text?"),
        (["run", "x", "--text", "a", "--batch-size", "two"], "two"),
        (["shwo"], 'Unknown command "shwo"'),
    ],
)
def test_wrong_usage_gives_2(refused: Callable[..., str], arguments: list[str], message: str) -> None:
    assert message in refused(2, *arguments)


def test_a_damaged_toml_file(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[run\n", encoding="utf-8")
    assert "run.toml: this is not valid TOML" in refused(1, "run", "x", "--config", config)


def test_an_unknown_option_in_a_toml_file(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[run]\nprobes = 1\n", encoding="utf-8")
    assert "probes" in refused(2, "run", "x", "--text", "a", "--config", config)


def test_ids_that_are_no_numbers(refused: Callable[..., str], folder: Path) -> None:
    for given in ("1,x", "1,,5", "1,5,", ","):
        assert f"--ids '{given}': these are not token ids." in refused(1, "run", folder, "--ids", given)


@pytest.mark.parametrize("given", ["1.5", "2.0", "two", ""])
def test_a_number_of_prompts_is_whole(refused, given):
    assert "batch-size" in refused(2, "run", "zoo:lm-python", "--text", "a", "--batch-size", given, "-o", "never.nc")
    assert not Path("never.nc").exists()


def test_a_device_that_is_not_there(refused: Callable[..., str], folder: Path) -> None:
    assert "--device vulcan: torch refuses it" in refused(1, "run", folder, "--ids", "1,2", "--device", "vulcan")


def test_an_existing_file_is_kept(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "old.nc"
    path.write_text("precious", encoding="utf-8")
    message = refused(1, "run", tmp_path / "no-model", "--ids", "1,2", "--output", path)
    assert "the file exists. Pass --overwrite to replace it." in message
    assert path.read_text(encoding="utf-8") == "precious"


def test_a_figure_that_the_reading_cannot_give(refused: Callable[..., str], readings: Path, tmp_path: Path) -> None:
    message = refused(1, "plot", "max-attention", readings, "-o", tmp_path / "a.png")
    assert "figure 'max-attention' needs ['max_attention'], which this reading lacks." in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("layer", "--select layer: write DIM=LABEL with one of the dims"),
        ("colour=red", "--select colour=red: write DIM=LABEL"),
        ("layer=9", "--select layer=9: layer has no label '9'; its labels are ['0', '1', '2']."),
    ],
)
def test_select_says_what_there_is(refused: Callable[..., str], readings: Path, select: str, message: str) -> None:
    assert message in refused(1, "show", readings, "--select", select)


@pytest.fixture(scope="module")
def swept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweeps") / "sweep.nc"
    edits = ["--edit", "masked: mask-keys keys=first", "--edit", "scale-keys gamma=0.5 keys=first layers=1"]
    arguments = ["--ids", "1,5,9,12,20,7", "--probe", "key-mass", "--executor", "serial", "-o", str(path)]
    assert main(["sweep", str(folder), *edits, *arguments]) == 0
    return path


def test_a_sweep_gives_what_the_library_gives(swept: Path, folder: Path) -> None:
    found = schema.open(swept)
    names = ["baseline", "masked", "scale-keys gamma=0.5 keys=first layers=1"]
    assert found["edit"].values.tolist() == names
    model = sk.load_model(folder)
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12, 20, 7]], model)
    for name, edits in zip(
        names, [[], [sk.MaskKeys("first")], [sk.ScaleKeys(0.5, keys="first", layers=[1])]], strict=True
    ):
        direct = sk.run(model, prompts, [sk.KeyMass()], edits)
        np.testing.assert_allclose(found["key_mass"].sel(edit=name), direct["key_mass"], atol=1e-5)


def test_show_sums_up_a_sweep(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(swept)]) == 0
    said = capsys.readouterr().out
    mean = schema.open(swept)["key_mass"].isel(key=0).mean(["prompt", "layer", "head"])
    row = next(line for line in said.splitlines() if line.startswith("masked"))
    np.testing.assert_allclose(float(row.split()[-1]), float(mean.sel(edit="masked")), rtol=1e-3)
    assert "--select edit=baseline tells what one of them shows." in said
    assert main(["show", str(swept), "--select", "edit=masked"]) == 0


def test_a_grid_has_an_axis_per_field(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grid.nc"
    grid = ["--grid", "scale-keys keys=first gamma=0.5:1.5:0.5 layers=0:2", "--no-baseline"]
    arguments = ["--ids", "1,5,9,12", "--probe", "key-mass", "--executor", "serial", "-o", str(path)]
    assert main(["sweep", str(folder), *grid, *arguments]) == 0
    found = schema.open(path)
    assert found["key_mass"].dims[:2] == ("gamma", "edit_layer")
    assert found["gamma"].values.tolist() == [0.5, 1.0, 1.5]
    assert main(["show", str(path)]) == 0
    assert main(["show", str(path), "--select", "gamma=0.5", "--select", "edit_layer=1"]) == 0
    assert "by gamma (3), edit_layer (2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "sweep: give --edit for each variant, or one --grid, and not both."),
        (["--edit", "zero-values keys=first", "--grid", "scale-keys gamma=1,2"], "and not both."),
        (["--edit", "a: zero-values keys=first"] * 2, "sweep: two variants are named 'a'."),
        (["--grid", "scale-keys gamma=1"], "no field has several values. Write gamma=0.2:2.0:0.2 or layers=0,3."),
        (["--grid", "scale-keys gama=1,2"], "'gama=1,2' is no field of it."),
    ],
)
def test_malformed_sweeps(refused: Callable[..., str], options: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(1, "sweep", "x", "--ids", "1,2", "-o", tmp_path / "a.nc", *options)


def test_a_figure_takes_one_edit_at_a_time(refused: Callable[..., str], swept: Path, tmp_path: Path) -> None:
    message = refused(1, "plot", "sink-map", swept, "-o", tmp_path / "a.png")
    assert "plot: this reading holds edit ['baseline', 'masked'" in message
    assert "Choose one: --select edit=baseline." in message
    assert main(["plot", "sink-map", str(swept), "-o", str(tmp_path / "a.png"), "--select", "edit=masked"]) == 0


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("paragraph", ["one\n  two", "three"]),
        ("line", ["one", "  two", "three"]),
        ("none", ["one\n  two\n \nthree"]),
    ],
)
def test_splitting_keeps_the_text_as_it_is(split: str, expected: list[str]) -> None:
    assert split_text("\none\n  two\n \nthree\n", split) == expected


def test_an_empty_text_file(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n\n", encoding="utf-8")
    message = refused(1, "run", folder, "--text-file", path, "-o", tmp_path / "a.nc")
    assert "it holds no text. Give a file with at least one word." in message


def test_a_text_file_that_is_not_text(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    assert "it is not UTF-8 text." in refused(1, "run", folder, "--text-file", path, "-o", tmp_path / "a.nc")


def test_a_closed_pipe_is_no_error(readings: Path) -> None:
    code = "import sys; from sinkscope.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "show", str(readings), "--table", "key_mass", "--rows", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaints = process.stderr.read()
    assert process.returncode == 0
    assert complaints == b""


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "mine.jsonl"
    rows = [{"prompt": f"x{i} = {i}\ny = x{i} +", "options": [" 1", " x"], "answer": i % 2} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tune_gives_what_the_library_gives(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sinkscope import tasks
    from sinkscope.methods.zerotuning import ZeroTuningSettings, zerotune

    target = tmp_path / "tuned.nc"
    options = ["--file", questions, "--calibration", "10", "--test", "12", "--mode", "loss", "--heads", "all"]
    arguments = ["tune", "zoo:lm-python", "mine", *options, "-o", target]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    task = tasks.load("mine", questions, calibration=10, test=12)
    result = zerotune(sk.load_model("zoo:lm-python"), task, ZeroTuningSettings(mode="loss", heads="all", batch_size=8))
    assert said.splitlines()[0] == result.summary()
    found = schema.open(target)
    assert json.loads(found.attrs["chosen"]) == result.edit.to_dict()
    np.testing.assert_allclose(found["log_probability"], result.test["log_probability"], atol=1e-5)
    assert main(["show", str(target)]) == 0
    said = capsys.readouterr().out
    assert "Mean of each variable by edit." in said
    assert "Mean of each variable by gamma." in said
    assert "--select" not in said


def test_tune_with_task_data_and_gradient(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    few = ["--calibration", "4", "--test", "4", "--mode", "option_loss", "--profile-by", "gradient"]
    own, made = tmp_path / "own.nc", tmp_path / "made.nc"
    assert main(["tune", "zoo:lm-python", "--data", str(questions), *few, "-o", str(own)]) == 0
    assert capsys.readouterr().out.startswith("mine: gamma ")
    assert main(["tune", "zoo:lm-python", "--task", "copy", *few, "-o", str(made)]) == 0
    assert capsys.readouterr().out.startswith("copy: gamma ")
    assert json.loads(schema.open(made).attrs["settings"])["profile_by"] == "gradient"
    told = refused(1, "tune", "zoo:lm-python", "--task", "topic", "--chat", *few, "-o", tmp_path / "chat.nc")
    assert "has no chat template" in told


def test_explain_image_says_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sinkscope.tasks.scenes import held_out

    picture, target = tmp_path / "picture.png", tmp_path / "why.png"
    held_out(1, first=9000)[0].image(4).save(picture)
    asked = ["explain-image", "zoo:vlm-shapes", str(picture), "How many shapes are there?", "--draws", "2"]
    assert main([*asked, "-o", str(target)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Asked 'How many shapes are there?', the model answers 'two', probability ")
    assert f"Saved {target}." in said
    assert target.read_bytes().startswith(b"\x89PNG")


def test_explain_image_refuses_before_a_model_is_loaded(refused: Callable[..., str], tmp_path: Path) -> None:
    asked = ("explain-image", "nowhere", tmp_path / "no.png", "What?")
    assert "figures are png, pdf or svg" in refused(1, *asked, "-o", tmp_path / "why.gif")
    kept = tmp_path / "why.png"
    kept.write_text("kept")
    assert "exists" in refused(1, *asked, "-o", kept)
    assert kept.read_text() == "kept"


def test_tune_refuses_before_a_model_is_loaded(refused: Callable[..., str], questions: Path, tmp_path: Path) -> None:
    target = tmp_path / "tuned.nc"
    assert "load('mine'): there is no such task" in refused(1, "tune", "nowhere", "mine", "-o", target)
    assert "tune nowhere: what to ask? Name a --task, or give questions of your own with --data FILE" in refused(
        1, "tune", "nowhere", "-o", target
    )
    three = ["--data", questions] * 3
    assert "tune: 3 files. Give one that is split, or two" in refused(
        1, "tune", "nowhere", "mine", *three, "-o", target
    )
    target.write_text("kept")
    assert "exists" in refused(1, "tune", "nowhere", "copy", "-o", target)
    assert target.read_text() == "kept"


def test_models_are_listed_among_what_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    said = capsys.readouterr().out
    assert {"smollm2-135m", "zoo:lm-python"} <= {line.split()[0] for line in said.splitlines() if line}


def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in ("explain-image", "sweep", "--output", "--batch-size"))
    assert main(["completion", "csh"]) == 2
