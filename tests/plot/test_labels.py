import io
import subprocess
import sys
import warnings

import hypothesis.strategies as st
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

from sinkscope.errors import SchemaError
from sinkscope.plot.labels import labels_of, log_scale, need_dims, plain, set_ticks, token_label


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("cat", "cat"),
        (" cat", "␣cat"),
        ("\n", "↵"),
        ("\t", "⇥"),
        ("", "∅"),
        ("\x00", r"\x00"),
        ("\u202e", r"\u202e"),
        ("\u0301", r"\u0301"),
        ("世", r"\u4e16"),
        ("\U0001f9ff", r"\U0001f9ff"),
        ("é", "é"),
        ("$x_1$", r"\$x_1\$"),
        ("a" * 14, "a" * 14),
        ("a" * 15, "a" * 14 + "…"),
    ],
)
def test_token_label_shows_every_character(token, shown):
    assert token_label(token) == shown


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_any_token_can_be_drawn(tokens):
    figure, ax = plt.subplots(figsize=(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.set_xticks(range(len(tokens)), [token_label(t) for t in tokens])
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    plt.close(figure)


def test_dollar_is_drawn_as_a_dollar():
    _, ax = plt.subplots()
    text = ax.text(0, 0, token_label("$5 and $6", 20))
    shown, kind = text._preprocess_math(text.get_text())
    assert (shown, kind) == ("$5␣and␣$6", False)


def test_plain_keeps_spaces_and_line_breaks():
    assert plain("a b\nc $1 世") == "a b\nc \\$1 \\u4e16"


def test_ticks_are_thinned_and_keep_the_first():
    _, ax = plt.subplots()
    set_ticks(ax, "x", [str(i) for i in range(100)], most=10)
    assert [t.get_text() for t in ax.get_xticklabels()] == [str(i) for i in range(0, 100, 10)]
    assert ax.get_xticks().tolist() == list(range(0, 100, 10))


def test_labels_come_from_the_coordinate():
    array = xr.DataArray(np.zeros(2), dims="layer", coords={"layer": [3, 7]})
    assert labels_of(array, "layer") == ["3", "7"]
    assert labels_of(array.drop_vars("layer"), "layer") == ["0", "1"]
    with pytest.raises(SchemaError, match=r"no dimension 'head'; it has \('layer',\)"):
        labels_of(array, "head")


def test_wrong_dims_say_what_to_do():
    array = xr.DataArray(np.zeros((2, 3, 4)), dims=("prompt", "layer", "head"))
    with pytest.raises(
        SchemaError, match=r"Select one of 'prompt' with .isel, or average over it with .mean\('prompt'\)"
    ):
        need_dims(array, ("layer", "head"), "sink_map")
    with pytest.raises(SchemaError, match="Pass an array with the dimensions"):
        need_dims(array.isel(prompt=0, head=0), ("layer", "head"), "sink_map")
    assert need_dims(array.isel(prompt=0), ("head", "layer"), "x").dims == ("head", "layer")


def test_plot_imports_without_torch():
    code = "import sys, sinkscope.plot; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("values", "linear", "wanted"), [
    ([1.5, 4.0, 9.0], None, {2.0, 5.0}), ([0.002, 900.0], None, {0.01, 1.0, 100.0}),
    ([1.4, 9.0], 0.1, {2.0, 5.0}), ([-0.03, 0.0, 60.0], 0.1, {0.0, 1.0, 10.0}),
])  # fmt: skip
def test_a_logarithmic_axis_has_numbers_within_what_it_shows(values, linear, wanted):
    figure, axes = plt.subplots()
    axes.plot(range(len(values)), values)
    log_scale(axes, linear=linear)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = {float(t.get_text()) for t in axes.get_yticklabels() if t.get_text() and low <= t.get_position()[1] <= high}
    assert wanted <= shown
    plt.close(figure)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("{13: [2]}", "L13H2"), ("{13: [2, 4], 14: [0]}", "L13H2, L13H4, L14H0"),
        ("[(13, 2), (13, 4)]", "L13H2, L13H4"), ("[1, 2]", "[1, 2]"), ("{}", "{}"), ("masked", "masked"),
    ],
)  # fmt: skip
def test_heads_of_a_grid_are_named_as_heads_are(label, said):
    assert labels_of(xr.DataArray([1.0], {"edit_head": [label]}, "edit_head"), "edit_head") == [said]


def test_names_beside_lines_outside_a_theme_have_the_size_of_the_setting():
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from sinkscope.plot.naming import name_lines, names_of

    with mpl.rc_context({"legend.fontsize": "medium"}):
        axes = plt.figure().add_subplot()
        name_lines(axes, axes.plot([0, 1]), ["one"])
        axes.figure.canvas.draw()
    assert names_of(axes) == ["one"]
