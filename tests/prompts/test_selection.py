"""One language for selecting tokens: roles, places, positions, boolean arrays."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.errors import EditError, ProbeError
from sinkscope.prompts import Batch
from sinkscope.prompts.selection import from_array, positions, select
from sinkscope.roles import ROLE_INDEX

PAD = ROLE_INDEX["pad"]


def batch(*rows, indices=None):
    """Rows of role names, None for padding."""
    roles = torch.tensor([[PAD if r is None else ROLE_INDEX[r] for r in row] for row in rows], dtype=torch.int8)
    return Batch({}, roles != PAD, roles, tuple(indices or range(len(rows))))


LEFT = batch(
    (None, None, "bos", "text", "image", "image", "text"), ("bos", "image", "text", "newline", "text", "user", "text")
)
RIGHT = batch(
    ("bos", "text", "image", "image", "text", None, None), ("bos", "image", "text", "newline", "text", "user", "text")
)


def chosen(selection, which=LEFT):
    """Columns selected in each row."""
    return [row.nonzero()[:, 0].tolist() for row in select(selection, which, ProbeError, "X(keys=...)")]


def test_positions_count_real_tokens():
    assert positions(LEFT.real)[0].tolist() == [-1, -1, 0, 1, 2, 3, 4]
    assert positions(RIGHT.real)[0].tolist() == [0, 1, 2, 3, 4, -1, -1]


@pytest.mark.parametrize(
    ("selection", "left", "right"),
    [
        ("all", [[2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]),
        (None, [[2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]),
        ("first", [[2], [0]], [[0], [0]]),
        ("last", [[6], [6]], [[4], [6]]),
        ("image", [[4, 5], [1]], [[2, 3], [1]]),
        ("after_image", [[6], [2, 3, 4, 5, 6]], [[4], [2, 3, 4, 5, 6]]),
        (["text", "user"], [[3, 6], [2, 4, 5, 6]], [[1, 4], [2, 4, 5, 6]]),
        (["first", "newline"], [[2], [0, 3]], [[0], [0, 3]]),
        ([0, 2, 2], [[2, 4], [0, 2]], [[0, 2], [0, 2]]),
        ([-1, -5], [[2, 6], [2, 6]], [[0, 4], [2, 6]]),
        (range(1, 3), [[3, 4], [1, 2]], [[1, 2], [1, 2]]),
        (np.array([1]), [[3], [1]], [[1], [1]]),
        (np.int64(1), [[3], [1]], [[1], [1]]),
        (1, [[3], [1]], [[1], [1]]),
        ("system", [[], []], [[], []]),
        ([], [[], []], [[], []]),
    ],
)
def test_every_form_on_either_side_of_the_padding(selection, left, right):
    assert chosen(selection, LEFT) == left
    assert chosen(selection, RIGHT) == right


def test_after_image_is_empty_without_an_image():
    assert chosen("after_image", batch(("bos", "text"), ("image", "text"))) == [[], [1]]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            "tetx",
            "X(keys=...): there is no role or selection 'tetx'. Roles are ['answer', 'audio', 'bos', 'generated'",
        ),
        ("pad", "X(keys=...): there is no role or selection 'pad'."),
        (["text", "nope"], "X(keys=...): there is no role or selection 'nope'."),
        (
            [5],
            "X(keys=...): position 5 is beyond a prompt of 5 tokens. Use positions from -5 to 4, or prompts",
        ),
        (-6, "X(keys=...): position -6 is beyond a prompt of 5 tokens. Use positions from -5 to 4"),
        (True, "X(keys=...): cannot select tokens by True. Use a role, a list of roles or positions, one of ['all',"),
        (1.5, "X(keys=...): cannot select tokens by 1.5."),
        ([0, "text"], "X(keys=...): cannot select tokens by [0, 'text']."),
        ([1.0], "X(keys=...): cannot select tokens by [1.0]."),
    ],
)
def test_what_cannot_be_selected_is_said(selection, message):
    for error in (ProbeError, EditError):
        with pytest.raises(error) as raised:
            select(selection, LEFT, error, "X(keys=...)")
        assert str(raised.value).startswith(message)


def array(values, dims=("prompt", "key"), **coords):
    values = np.asarray(values, dtype=bool)
    if "prompt" in dims:
        coords.setdefault("prompt", np.arange(values.shape[dims.index("prompt")]))
    return xr.DataArray(values, dims=dims, coords=coords)


def test_an_array_is_laid_where_the_tokens_are():
    which = array([[1, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1]])
    assert chosen(which, LEFT) == [[2, 5], [2, 6]]
    assert chosen(which, RIGHT) == [[0, 3], [2, 6]]


def test_an_array_that_is_shorter_selects_nothing_beyond_its_end():
    assert chosen(array([[1, 0, 1], [0, 1, 0]]), LEFT) == [[2, 4], [1]]


def test_rows_are_found_by_the_label_of_the_prompt():
    which = array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], prompt=[4, 9, 2])
    rows = batch(("bos", "text", "text"), ("bos", "text", "text"), indices=(2, 4))
    assert chosen(which, rows) == [[2], [0]]


def test_layers_and_heads_of_an_array():
    values = np.zeros((2, 2, 3, 3), dtype=bool)
    values[0, 1, 2, 1] = values[1, 0, 0, 2] = True
    which = array(values, ("prompt", "layer", "head", "key"), layer=[5, 7], head=[0, 1, 2])
    rows = batch(("bos", "text", "text"), ("bos", "text", "text"))
    at7 = from_array(which, rows, 7, ProbeError, "X")
    assert at7.shape == (2, 3, 3)
    assert at7.nonzero().tolist() == [[0, 2, 1]]
    assert from_array(which, rows, 5, ProbeError, "X").nonzero().tolist() == [[1, 0, 2]]
    assert not from_array(which, rows, 6, ProbeError, "X").any()  # a layer the array does not hold
    assert chosen(which, rows) == [[1], [2]]  # without layers or heads: selected anywhere
    flat = from_array(which.any(("layer", "head")), rows, 7, ProbeError, "X")
    assert flat.shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            xr.DataArray(np.ones((2, 3)), dims=("prompt", "key")),
            "X: the DataArray holds float64, not booleans. Compare it with a threshold first.",
        ),
        (
            xr.DataArray(np.ones((2, 3), dtype=bool), dims=("prompt", "query")),
            "X: the DataArray has dims ('prompt', 'query'); it needs prompt and key, and may have layer, head.",
        ),
        (array([[1, 0, 1]]), "X: the DataArray holds prompts [0], not prompt 1. Use the same prompts."),
        (
            array(np.ones((2, 8))),
            "X: the DataArray selects positions beyond the longest prompt (7 tokens).",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(which, message):
    with pytest.raises(ProbeError) as raised:
        select(which, LEFT, ProbeError, "X")
    assert str(raised.value) == message


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.integers(-6, 5), st.integers(0, 10**6))
def test_a_position_names_the_same_token_whatever_the_padding(lengths, left, place, seed):
    longest = max(lengths)
    names = ["text", "image", "newline", "user"]
    rng = np.random.default_rng(seed)
    rows = [[names[i] for i in rng.integers(0, 4, n)] for n in lengths]
    wide = [[None] * (longest - len(r)) + r if left else r + [None] * (longest - len(r)) for r in rows]
    which = batch(*wide)
    if not -min(lengths) <= place < min(lengths):
        with pytest.raises(ProbeError, match="is beyond a prompt"):
            select(place, which, ProbeError, "X")
        return
    for row, column in zip(rows, chosen(place, which), strict=True):
        assert len(column) == 1
        offset = longest - len(row) if left else 0
        assert column[0] - offset == (place if place >= 0 else len(row) + place)
