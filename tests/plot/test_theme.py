import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.theme import PALETTE, ROLE_COLOURS, SEQUENTIAL, settings
from sinkscope.roles import ROLES


def test_theme_is_put_back():
    before = mpl.rcParams["font.size"]
    with plot.theme("slide"):
        assert mpl.rcParams["font.size"] == 17
        assert mpl.rcParams["figure.figsize"] == [9.0, 5.6]
    assert mpl.rcParams["font.size"] == before


def test_theme_is_put_back_after_an_error():
    before = mpl.rcParams["figure.figsize"]
    with pytest.raises(RuntimeError), plot.theme("paper"):
        raise RuntimeError
    assert mpl.rcParams["figure.figsize"] == before


def test_unknown_theme():
    with pytest.raises(SchemaError, match=r"theme\('poster'\): there is no such theme. Use one of \['page'"):
        settings("poster")


def test_a_paper_column_is_the_default():
    array = xr.DataArray(np.zeros((2, 3)), dims=("layer", "head"))
    assert plot.sink_map(array).get_figure().get_size_inches()[0] == pytest.approx(3.3)
    with plot.theme("slide"):
        assert plot.sink_map(array).get_figure().get_size_inches()[0] == pytest.approx(9.0)


def _luminance(colour):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))


def test_sequential_map_darkens_evenly():
    lightness = np.array([_luminance(SEQUENTIAL(x)) for x in np.linspace(0, 1, 50)])
    assert (np.diff(lightness) < 0).all()


def test_lines_stand_out_on_white():
    assert all(1.05 / (_luminance(c) + 0.05) > 2.0 for c in PALETTE)
    assert len(set(PALETTE)) == len(PALETTE)


def test_every_role_has_its_own_colour():
    assert set(ROLE_COLOURS) == set(ROLES)
    assert len(set(ROLE_COLOURS.values())) == len(ROLES)


def test_caption_of_a_reading():
    ds = xr.Dataset({"key_mass": ("prompt", [0.1])}, attrs={"model_id": "m"})
    assert plot.caption_text(ds, definition="Gu et al.") == "model m; n = 1 prompt; Gu et al."


def test_caption_of_a_metric():
    array = xr.DataArray(
        1.0, attrs={"definition": "gu2025", "meaning": "share of heads", "model_id": "m", "n_prompts": 4}
    )
    assert plot.caption_text(array) == "model m; n = 4 prompts; share of heads (gu2025)"


def test_described_takes_over_model_and_prompts():
    ds = xr.Dataset({"a": (("prompt", "layer"), np.zeros((5, 2)))}, attrs={"model_id": "m"})
    array = plot.described(ds.a.mean("prompt"), ds, "mean over prompts")
    assert plot.caption_text(array) == "model m; n = 5 prompts; mean over prompts"


def test_new_figure_has_the_caption_and_given_axes_have_not():
    array = xr.DataArray(np.zeros((2, 3)), dims=("layer", "head"), attrs={"model_id": "a$b$", "definition": "gu2025"})
    figure = plot.sink_map(array).get_figure()
    assert figure.get_supxlabel() == r"model a\$b\$; gu2025"
    own, ax = plt.subplots()
    plot.sink_map(array, ax=ax)
    assert own.get_supxlabel() == ""
    assert plot.caption(ax, array) == "model a$b$; gu2025"
    assert own.get_supxlabel() == r"model a\$b\$; gu2025"


def test_long_caption_is_wrapped():
    figure = plt.figure(figsize=(3.3, 2))
    plot.caption(figure, "word " * 60)
    assert figure.get_supxlabel().count("\n") >= 3


def test_interactive_mode_switched_on_inside_a_theme_stays_on():
    before = mpl.is_interactive()
    try:
        mpl.interactive(False)
        with plot.theme():
            mpl.interactive(True)
        assert mpl.is_interactive()
        mpl.interactive(False)
        with plot.theme():
            pass
        assert not mpl.is_interactive()
    finally:
        mpl.interactive(before)
