"""Two readings on one page, and sweeps: which runs there are, what they are compared with, and how they differ."""

import json

import numpy as np
import pytest
import xarray as xr

from sinkscope import cli, schema
from sinkscope.errors import SchemaError
from sinkscope.report import find_sinks, write_report
from sinkscope.report.compared import differences, moved_sinks
from sinkscope.report.heads import sweep_axis
from sinkscope.report.runs import MAX_RUNS, base_of, runs_of


@pytest.fixture
def halved(reading):
    changed = reading.copy(deep=True)
    changed["key_mass"].values[..., 0] *= 0.5
    changed.attrs["edits"] = json.dumps([{"edit": "MaskKeys", "keys": "first"}])
    return changed


def test_one_reading_is_one_run(reading):
    (run,) = runs_of(reading)
    assert (run.label, run.edits) == ("this reading", "no edits")


def test_two_readings_are_named_by_what_tells_them_apart(reading, halved):
    runs = runs_of(halved, reading)
    assert [run.label for run in runs] == ["MaskKeys(keys='first')", "no edits"]
    assert base_of(runs, compared=True) == 1
    halved.attrs["model_id"] = "other"
    assert [run.label for run in runs_of(halved, reading)] == ["other", "fake/six-layers"]
    assert [run.label for run in runs_of(halved, reading, ("a", "b"))] == ["a", "b"]
    assert [run.label for run in runs_of(reading, reading)] == ["this reading", "the other reading"]


def test_a_sweep_gives_a_run_per_variant(reading, halved):
    sweep = xr.concat([halved, reading], xr.Variable("edit", ["mask", "baseline"]), combine_attrs="override")
    runs = runs_of(sweep)
    assert [run.label for run in runs] == ["mask", "baseline"]
    assert base_of(runs, compared=False) == 1
    np.testing.assert_array_equal(runs[0].ds["key_mass"], halved["key_mass"])


def test_a_grid_has_its_axes_in_the_labels_and_its_baseline_in_front(reading, halved):
    grid = xr.concat([halved, reading], xr.Variable("gamma", [0.5, 1.0]), combine_attrs="override")
    grid["key_mass_baseline"] = reading["key_mass"]
    runs = runs_of(grid)
    assert [run.label for run in runs] == ["baseline", "gamma = 0.5", "gamma = 1.0"]
    assert "key_mass_baseline" not in runs[1].ds
    np.testing.assert_array_equal(runs[0].ds["key_mass"], reading["key_mass"])


def test_too_many_variants_say_how_to_select(reading):
    sweep = reading[["key_mass"]].expand_dims(edit=np.arange(MAX_RUNS + 1))
    with pytest.raises(SchemaError, match=r"has 65 variants along \['edit'\].*ds.isel\(edit=slice\(0, 64\)\)"):
        runs_of(sweep)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ds: ds.isel(layer=slice(1, None)), "layer has 6 labels in one reading and 5 in the other"),
        (lambda ds: ds.assign_coords(token=ds["token"] + "x"), "hold other tokens"),
        (lambda ds: ds.expand_dims(edit=["none"]), r"has the dimension 'edit' in front. Select one: .*edit='none'"),
    ],
)
def test_readings_of_other_prompts_are_refused(reading, change, said, tmp_path):
    with pytest.raises(SchemaError, match=said):
        write_report(reading, tmp_path / "r.html", against=change(reading))
    assert list(tmp_path.iterdir()) == []


def test_differences_are_paired_over_prompts(build):
    base = build(lengths=(40, 25, 33, 30, 30, 30, 30, 30))
    changed = base.copy(deep=True)
    changed["key_mass"].values[..., 0] *= 0.5
    sinks = find_sinks(base)
    found = differences(runs_of(changed, base, ("half", "whole")), 1, sinks)
    rows = {row.quantity: row for row in found}
    share = rows[f"attention on {sinks.label}, mean over heads"]
    assert share.difference == pytest.approx(share.value - share.base)
    assert share.difference < 0
    assert share.low <= share.difference <= share.high
    assert share.q_value < 0.05
    assert (share.run, share.n) == ("half", 8)
    assert rows["largest activation"].difference == 0


def test_one_prompt_has_no_interval(build):
    base = build(lengths=(40,))
    row = differences(runs_of(base, base), 1, find_sinks(base))[0]
    assert row.cells[5:] == ("too few prompts", "", "1")


def moved(ds, target):
    """The reading with what the first token got at another one."""
    mass = ds["key_mass"].copy(deep=True)
    mass[..., target], mass[..., 0] = mass[..., 0], 0.0
    return ds.assign(key_mass=mass)


MOVED = "the sink moves from position 0 to 1, where "


def test_a_masked_sink_that_moves_is_said_where_the_runs_are_compared(reading, halved, tmp_path, capsys):
    masked = moved(reading, 1)
    (said,) = moved_sinks(runs_of(masked, reading, ("masked", "plain")), 1, compared=True)
    assert said.startswith(f"masked: {MOVED}")
    path = write_report(masked, tmp_path / "r.html", against=reading, figures=[], labels=("masked", "plain"))
    assert MOVED in path.read_text("utf-8")
    names = xr.Variable("edit", ["baseline", "mask", "half"])
    sweep = xr.concat([reading, masked, halved], names, combine_attrs="override")
    assert [said.split(":")[0] for said in moved_sinks(runs_of(sweep), 0)] == ["mask"]
    schema.save(sweep[["key_mass"]], tmp_path / "sweep.nc")
    assert cli.main(["show", str(tmp_path / "sweep.nc")]) == 0
    assert f"mask: {MOVED}" in capsys.readouterr().out


def test_nothing_is_said_of_a_sink_that_was_not_looked_for_or_is_of_another_model(reading):
    masked, other = moved(reading, 1), reading.assign_attrs(model_fingerprint="another")
    assert moved_sinks(runs_of(masked, other), 1, compared=True) == []
    alone = [ds.assign(key_mass=ds["key_mass"].where(ds["key"] == 0)) for ds in (masked, reading)]
    assert moved_sinks(runs_of(*alone), 1, compared=True) == []
    sweep = xr.concat([masked, reading], xr.Variable("edit", ["a", "b"]), combine_attrs="override")
    assert moved_sinks(runs_of(sweep), 0) == [], "no variant is called the one without edits"


def test_the_page_shows_both_and_the_differences(reading, halved, tmp_path, data_of):
    path = write_report(halved, tmp_path / "r.html", against=reading, figures=[], labels=("halved", "plain"))
    text = path.read_text("utf-8")
    assert 'id="differences"' in text
    assert "Each run against <strong>plain</strong>" in text
    assert "With fewer than 6 prompts no test here can reach .05" in text
    data = data_of(path)
    runs = data.header["heads"]["runs"]
    assert [run["label"] for run in runs] == ["halved", "plain"]
    np.testing.assert_allclose(data.array(runs[0]["variables"]["key_mass"]), halved["key_mass"], rtol=1.1e-3)


def test_the_page_of_a_sweep(reading, halved, tmp_path, data_of):
    sweep = xr.concat([reading, halved], xr.Variable("edit", ["baseline", "mask"]), combine_attrs="override")
    header = data_of(write_report(sweep, tmp_path / "r.html", figures=["sink_map"])).header
    assert header["base"] == 0
    assert [run["label"] for run in header["massive"]["runs"]] == ["baseline", "mask"]


def test_the_command_compares_two_files_and_takes_a_sweep(reading, halved, tmp_path, capsys, data_of):
    light = ["key_mass", "entropy"]
    for name, ds in (("edited", halved), ("plain", reading)):
        schema.save(ds[light], tmp_path / f"{name}.nc")
    edited, plain, page = (str(tmp_path / name) for name in ("edited.nc", "plain.nc", "r.html"))
    assert cli.main(["report", edited, "--against", plain, "--output", page]) == 0
    assert [run["label"] for run in data_of(tmp_path / "r.html").header["heads"]["runs"]] == ["edited", "plain"]
    variants = xr.Variable("edit", ["mask", "baseline"])
    sweep = xr.concat([halved[light], reading[light]], variants, combine_attrs="override")
    schema.save(sweep, tmp_path / "sweep.nc")
    assert cli.main(["report", str(tmp_path / "sweep.nc"), "--output", str(tmp_path / "s.html")]) == 0
    assert data_of(tmp_path / "s.html").header["base"] == 1
    schema.save(reading[light].isel(prompt=[0]), tmp_path / "one.nc")
    assert (
        cli.main(["report", edited, "--against", str(tmp_path / "one.nc"), "--output", str(tmp_path / "t.html")]) == 1
    )
    assert "Compare readings of the same prompts" in capsys.readouterr().err


def test_a_sweep_over_numbers_has_an_axis_and_other_dims_name_its_lines(build):
    one = build((12, 14), layers=2, heads=2, kv_heads=1)
    grid = xr.concat([xr.concat([one] * 3, xr.DataArray([0.0, 0.5, 2.0], dims="gamma", name="gamma"))] * 2,
                     xr.DataArray(["early", "late"], dims="part", name="part"))  # fmt: skip
    found = sweep_axis(runs_of(grid))
    assert found["name"] == "gamma"
    assert [(place["x"], place["line"]) for place in found["places"]] == [
        (0.0, "part = early"), (0.5, "part = early"), (2.0, "part = early"),
        (0.0, "part = late"), (0.5, "part = late"), (2.0, "part = late"),
    ]  # fmt: skip
    assert found["losses"] == [None] * 6
    assert sweep_axis(runs_of(one)) is None
    assert sweep_axis(runs_of(grid.isel(gamma=[0]))) is None, "one number is no axis"


def test_losses_of_a_sweep_are_means_over_tokens_then_prompts(build):
    one = build((12, 14), layers=2, heads=2, kv_heads=1)
    loss = np.full((2, 2, 14), np.nan)
    loss[:, 0, :11], loss[:, 1, :13] = 1.0, 2.0
    loss[1] += 1
    grid = xr.concat([one] * 2, xr.DataArray([0.0, 1.0], dims="gamma", name="gamma"))
    grid["token_loss"] = (("gamma", "prompt", "query"), loss)
    assert sweep_axis(runs_of(grid))["losses"] == [1.5, 2.5]


def test_captions_say_which_run_a_figure_shows(build, tmp_path):
    one = build((12, 14), layers=2, heads=2, kv_heads=1)
    path = write_report(one, tmp_path / "two.html", against=one, labels=("first", "second"), figures=["sink_map"])
    assert "Drawn from the run “first”." in path.read_text("utf-8")
    path = write_report(one, tmp_path / "one.html", figures=["sink_map"])
    assert "Drawn from the run" not in path.read_text("utf-8")
