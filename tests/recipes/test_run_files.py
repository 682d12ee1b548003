"""Files of a run: rows that a diff can show."""

import json

from recipes.run_files import to_lines, write


def test_every_row_and_every_field_has_a_line_of_its_own(tmp_path):
    data = {"name": "run", "recipe": {"layers": 2, "betas": [0.9, 0.95]}, "runs": {"0": [{"step": 1}, {"step": 2}]}}
    text = to_lines(data)
    assert json.loads(text) == data
    assert text.splitlines() == [
        "{", ' "name": "run",', ' "recipe": {', '  "layers": 2,', '  "betas": [0.9, 0.95]', " },",
        ' "runs": {', '  "0": [', '   {"step": 1},', '   {"step": 2}', "  ]", " }", "}",
    ]  # fmt: skip
    write(tmp_path / "rows.json", [{"loss": 1.23456789, "ratio": float("nan")}])
    assert (tmp_path / "rows.json").read_text() == '[\n {"loss": 1.2346, "ratio": null}\n]\n'


def test_empty_containers_stay_valid_json():
    assert json.loads(to_lines({"a": {}, "b": [], "c": [{}]})) == {"a": {}, "b": [], "c": [{}]}
