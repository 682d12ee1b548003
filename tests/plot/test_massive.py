import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.theme import OTHER, SINK


def one_site():
    return xr.Dataset(
        {
            "top_value": ("rank", [-300.0, 20.0, np.nan]),
            "top_dim": ("rank", [17.0, 5.0, np.nan]),
            "top_position": ("rank", [0.0, 3.0, np.nan]),
            "median_abs": ((), 0.25),
        },
        coords={"token": ("key", ["<s>", "a", "b", "$", ""]), "site": "3.post"},
        attrs={"d_model": 64, "model_id": "m"},
    )


def test_stems_stand_at_token_and_dimension_with_their_magnitude():
    ax = plot.massive_activations_picture(one_site())
    stems = [np.array(line.get_data_3d()) for line in ax.lines]
    assert [s[:, 1].tolist() for s in stems] == [[0, 17, 300], [3, 5, 20]]
    assert all(s[2, 0] == 0 for s in stems)
    assert [line.get_color() for line in ax.lines] == [SINK, OTHER]
    assert ax.get_yticks().tolist() == [5, 17], "those of entries over a twentieth of the largest"
    assert ax.get_ylim()[1] == pytest.approx(63)
    labels = dict(zip(ax.get_xticks().tolist(), [t.get_text() for t in ax.get_xticklabels()], strict=True))
    assert labels[0] == "<s>"
    assert labels[3] == r"\$"
    assert ax.get_title() == "Largest activations at 3.post"
    assert "median magnitude 0.25" in ax.get_figure().get_supxlabel().replace("\n", " ")
    ax.get_figure().savefig(io.BytesIO(), format="png")


def test_highlighted_dimensions_are_chosen_by_hand():
    ax = plot.massive_activations_picture(one_site(), highlight=[5])
    assert [line.get_color() for line in ax.lines] == [OTHER, SINK]


def test_wrong_input_is_named():
    with pytest.raises(SchemaError, match=r"\['top_dim'\] are missing. Run with MassiveActivations\(\)"):
        plot.massive_activations_picture(one_site().drop_vars("top_dim"))
    with pytest.raises(SchemaError, match=r"Select one of 'edit' with \.isel"):
        plot.massive_activations_picture(one_site().expand_dims("edit"))
    _, flat = plt.subplots()
    with pytest.raises(SchemaError, match="ax is flat"):
        plot.massive_activations_picture(one_site(), ax=flat)
