import numpy as np

from sinkscope.report import write_report
from sinkscope.report.massive_panel import named_dims


def test_the_panel_holds_the_entries(reading, tmp_path, data_of):
    data = data_of(write_report(reading, tmp_path / "r.html", figures=[]))
    massive, run = data.header["massive"], data.header["massive"]["runs"][0]
    np.testing.assert_array_equal(data.array(run["value"]), reading["top_value"])
    np.testing.assert_array_equal(data.array(run["dim"]), reading["top_dim"])
    np.testing.assert_array_equal(data.array(run["position"]), reading["top_position"])
    assert massive["sites"] == reading["site"].values.tolist()
    assert run["dims"][:2] == [17, 42]
    lines = data.array(run["lines"])
    np.testing.assert_allclose(lines[0, 4:-1], np.median(reading["top_value"].values[:, 4:-1, 0], axis=0), rtol=1e-6)
    np.testing.assert_allclose(lines[1, 4:-1], 140.0)


def test_without_a_massive_dimension_the_largest_are_named(evenly_spread):
    dims, rule = named_dims(evenly_spread)
    largest = int(np.nanargmax(np.abs(evenly_spread["top_value"].values)))
    assert dims[0] == int(evenly_spread["top_dim"].values.ravel()[largest])
    assert rule.startswith("none is massive")


def test_a_reading_without_them_has_no_panel(reading, tmp_path, data_of):
    path = write_report(reading[["key_mass"]], tmp_path / "r.html", figures=[])
    assert data_of(path).header["massive"] is None
    assert 'id="massive"' not in path.read_text("utf-8")
