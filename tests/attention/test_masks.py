"""The lazy mask against masks written out, and what the library hands over."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import causal_mask_function

from attention.calls import MASKS, PADDING, make
from sinkscope.attention.masks import MaskSpec, from_call, sinkscope_mask, with_chosen
from sinkscope.errors import UnsupportedModelError

laws = settings(max_examples=80, deadline=None, derandomize=True)
LENGTHS = [1, 7, 128, 129, 260]
every = pytest.mark.parametrize("mask", MASKS)
padded = pytest.mark.parametrize("padding", PADDING)
lengths = pytest.mark.parametrize("length", LENGTHS)


def blocks(length, size=50):
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def rendered(spec, rows, cols, batch):
    """The visible part of a block, written out whichever way the spec gives it."""
    seen = spec.visible(rows, cols)
    shape = (batch, rows.stop - rows.start, cols.stop - cols.start)
    return torch.ones(shape, dtype=torch.bool) if seen is None else seen.expand(shape)


@every
@padded
@lengths
def test_blocks_are_those_of_the_written_out_mask(mask, padding, length):
    case = make(length=length, mask=mask, padding=padding, seed=1)
    spec, keys = case.call.mask, case.visible.shape[2]
    for rows in blocks(length):
        for cols in (slice(0, keys), slice(keys // 3, keys), slice(0, max(1, keys // 2))):
            assert torch.equal(rendered(spec, rows, cols, 2), case.visible[:, rows, cols])


@every
@padded
@lengths
def test_the_extent_holds_every_visible_key(mask, padding, length):
    case = make(length=length, mask=mask, padding=padding, seed=2)
    for rows in blocks(length):
        extent = case.call.mask.extent(rows)
        assert extent.stop > extent.start
        outside = case.visible[:, rows].clone()
        outside[:, :, extent] = False
        assert not outside.any()


@pytest.mark.parametrize(("mask", "most"), [("window", 54), ("chunked", 60), ("causal", 300)])
def test_the_extent_of_a_window_is_narrow(mask, most):
    case = make(length=300, mask=mask)
    assert all(e.stop - e.start <= most for e in map(case.call.mask.extent, blocks(300)))


@every
@padded
@lengths
def test_hidden_is_the_complement_of_visible(mask, padding, length):
    case = make(length=length, mask=mask, padding=padding, seed=3)
    for rows in blocks(length):
        cols = case.call.mask.extent(rows)
        wanted = ~case.visible[:, rows, cols]
        found = torch.zeros_like(wanted)
        hidden = case.call.mask.hidden(rows, cols)
        if hidden is not None:
            found[:, :, hidden[0] :] = hidden[1]
        assert torch.equal(found, wanted)


def test_a_causal_mask_renders_only_its_corner():
    spec = make(length=300).call.mask
    edge, block = spec.hidden(slice(128, 256), slice(0, 256))
    assert (edge, tuple(block.shape)) == (129, (1, 128, 127))


@every
@padded
@lengths
def test_viewers_count_the_real_queries_that_see_each_key(mask, padding, length):
    case = make(length=length, mask=mask, padding=padding, seed=4)
    real = case.context.real[:, -length:]
    found = case.call.mask.viewers(real)
    wanted = torch.einsum("bqk,bq->bk", case.visible.float(), real.float())
    assert torch.equal(found, wanted)
    assert case.call.mask.viewers(real) is found


@every
@padded
def test_dead_rows_are_the_queries_that_see_nothing(mask, padding):
    case = make(length=140, mask=mask, padding=padding, seed=5)
    dead = ~case.visible.any(-1)
    found = case.call.mask.dead_rows()
    assert (found is None) == (not dead.any())
    if found is not None:
        assert torch.equal(found, dead)


@pytest.mark.parametrize(
    ("mask", "padding", "plain"),
    [
        ("causal", "none", True), ("full", "none", True), ("offset", "none", False), ("window", "none", False),
        ("causal", "left", False), ("full", "right", False),
    ],
)  # fmt: skip
def test_only_masks_that_the_fused_kernel_knows_are_plain(mask, padding, plain):
    assert make(length=20, mask=mask, padding=padding, seed=6).call.mask.plain is plain


def test_a_rule_that_branches_on_values_is_rendered_under_vmap():
    """Rules that index with a scalar only work one number at a time; the library then says use_vmap."""
    limit = torch.tensor([3, 5])

    def rule(b, h, i, j):
        return (j <= i) & (j < limit[b])

    spec = MaskSpec(2, 6, 6, 0, 0, rule, None, True, torch.device("cpu"))
    i, j = torch.arange(6)[:, None], torch.arange(6)[None]
    wanted = torch.stack([(j <= i) & (j < n) for n in (3, 5)])
    assert torch.equal(spec.visible(slice(0, 6), slice(0, 6)), wanted)


@laws
@given(
    st.integers(1, 6), st.integers(1, 20), st.integers(0, 9), st.integers(0, 2**20 - 1),
)  # fmt: skip
def test_the_padding_of_a_cache_is_cut_to_its_keys(q_length, kv_length, kv_offset, bits):
    """A window's cache holds keys from ``kv_offset``; keys that are not there yet count as padding."""
    given_mask = torch.tensor([[(bits >> n) & 1 for n in range(kv_length)]])
    spec = sinkscope_mask(1, q_length, kv_length, kv_length, kv_offset, causal_mask_function, given_mask)
    wanted = torch.zeros(1, kv_offset + kv_length, dtype=torch.bool)
    wanted[:, :kv_length] = given_mask.bool()
    wanted = wanted[:, kv_offset:]
    if spec.padding is None:
        assert wanted.all()
    else:
        assert torch.equal(spec.padding, wanted)


def tensors(rows, keys):
    return torch.zeros(1, 2, rows, 4), torch.zeros(1, 2, keys, 4)


def test_no_mask_means_full_or_top_left_causal_attention():
    query, key = tensors(3, 5)
    spec, bias = from_call(None, query, key, causal=False)
    assert (spec.kind, bias) == ("full", None)
    spec, _ = from_call(None, query, key, causal=True)
    found = rendered(spec, slice(0, 3), slice(0, 5), 1)[0]
    assert torch.equal(found, torch.ones(3, 5).tril().bool())
    one, _ = from_call(None, query[:, :, :1], key, causal=True)
    assert one.kind == "full"


def test_a_boolean_mask_is_taken_as_visible():
    query, key = tensors(3, 4)
    mask = torch.rand(1, 1, 3, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    spec, bias = from_call(mask, query, key, causal=True)
    assert bias is None
    assert torch.equal(spec.visible(slice(0, 3), slice(0, 4)), mask[:, 0, :, :4])


def test_an_additive_mask_is_split_into_what_is_hidden_and_a_bias():
    query, key = tensors(2, 3)
    low = torch.finfo(torch.float32).min
    mask = torch.tensor([[[[0.0, low, -torch.inf], [1.5, -2.0, 0.0]]]])
    spec, bias = from_call(mask, query, key, causal=False)
    assert spec.visible(slice(0, 2), slice(0, 3)).tolist() == [[[True, False, False], [True, True, True]]]
    assert bias.tolist() == [[[[0.0, 0.0, 0.0], [1.5, -2.0, 0.0]]]]
    spec, bias = from_call(torch.where(mask < -1e30, mask, 0.0), query, key, causal=False)
    assert bias is None


def test_a_spec_passes_through():
    case = make()
    assert from_call(case.call.mask, case.call.query, case.call.key, causal=True) == (case.call.mask, None)


def test_a_mask_for_other_keys_than_the_call_has_is_refused():
    query, key = torch.zeros(1, 2, 5, 4), torch.zeros(1, 1, 6, 4)
    told = "from 5 queries to 6 keys under a mask made for 5 and 5: it has keys of its own beside the tokens'"
    with pytest.raises(UnsupportedModelError, match=told):
        from_call(sinkscope_mask(1, 5, 5), query, key, causal=True)
    assert from_call(sinkscope_mask(1, 5, 6, q_offset=1), query, key, causal=True)[1] is None


@pytest.mark.parametrize("kind", ["none", "bool", "float", "spec"])
def test_chosen_keys_hide_the_others_on_top_of_a_mask(kind):
    """DeepSeek-V3.2 says which keys each query attends to; an index of -1 stands for none."""
    seen = torch.ones(3, 3).tril().bool()[None, None]
    low = torch.finfo(torch.float32).min
    mask = {
        "none": None, "bool": seen, "float": torch.zeros(1, 1, 3, 3).masked_fill(~seen, low),
        "spec": sinkscope_mask(1, 3, 3),
    }[kind]  # fmt: skip
    found = with_chosen(mask, torch.tensor([[[0, -1], [0, 2], [2, 1]]]), 3, 3)
    picked = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 1, 1]]).bool()
    wanted = picked if kind == "none" else picked & seen[0, 0]
    assert torch.equal((found > low / 2 if kind == "float" else found)[0, 0], wanted)
