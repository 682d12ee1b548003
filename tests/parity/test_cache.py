"""Decoding with a cache under the instrument equals one pass without a cache, also past the sliding window."""

import oracle
import pytest
import torch
from transformers import DynamicCache, StaticCache

from parity.common import DECODERS, assert_close, id_lists, network, padded
from sinkscope.attention import seam
from sinkscope.attention.view import Context, Wants

PREFILL, STEPS = 6, 7
ROWS = Wants("entropy", "row_sum", "log_sum_exp", "key_sum", "key_viewers")


def caches(name):
    config = network(name).config
    return {"dynamic": DynamicCache(config=config), "static": StaticCache(config=config, max_cache_len=16)}


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def decode(net, ids, mask, cache, collect):
    """Prefill, then one token at a time; the logits of every step joined along positions."""
    where = positions(mask)
    parts = []
    spans = [(0, PREFILL), *((n, n + 1) for n in range(PREFILL, ids.shape[1]))]
    for start, stop in spans:
        session = seam.Session(wants=lambda _module: ROWS, collect=collect)
        with torch.no_grad(), seam.entered(net, session):
            out = net(
                input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=where[:, start:stop],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        parts.append(out.logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("left", [False, True], ids=["unpadded", "left padded"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_step_by_step_equals_one_pass(name, left, kind):
    lengths = (PREFILL + STEPS, PREFILL + STEPS - (3 if left else 0))
    ids, mask = padded(id_lists(name, lengths), "left")
    net, rows = network(name), {}
    found = decode(net, ids, mask, caches(name)[kind], lambda m, s: rows.setdefault(id(m), []).append(s))
    with oracle.implementation(net, "eager"), torch.no_grad():
        wanted = net(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
    real = mask.bool()
    assert_close(found[real], wanted[real], name)
    calls = oracle.capture(
        net, input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
    ).calls  # fmt: skip
    assert len(rows) == len(calls) == 3
    live = real[:, None].expand(-1, 4, -1)
    for call, parts in zip(calls, rows.values(), strict=True):
        assert len(parts) == 1 + STEPS
        for statistic, expected in {
            "entropy": oracle.entropy(call.weights), "row_sum": call.weights.sum(-1), "log_sum_exp": call.log_sum_exp,
        }.items():  # fmt: skip
            joined = torch.cat([part[statistic] for part in parts], -1)
            assert_close(joined[live], expected[live], f"{name} {statistic}")


@pytest.mark.parametrize("name", DECODERS)
def test_generate_under_the_instrument_gives_the_same_tokens(name):
    net = network(name)
    ids, mask = padded(id_lists(name, (8, 5)), "left")
    options = {
        "attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "output_logits": True,
        "return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    with oracle.implementation(net, "eager"):
        wanted = net.generate(ids, **options)
    session = seam.Session(wants=lambda _module: ROWS, collect=lambda _m, _s: None)
    with seam.entered(net, session):
        found = net.generate(ids, **options)
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits, strict=True):
        assert_close(ours, theirs, name)
    assert len(session.calls) == 3 * 8


def test_a_window_evicts_the_first_key_of_the_cache():
    """Mistral's window is 5: past it the first key gets no weight, and none of the rows loses mass."""
    net = network("mistral")
    ids, mask = padded(id_lists("mistral", (PREFILL + STEPS,)), "left")
    rows = []
    decode(net, ids, mask, caches("mistral")["dynamic"], lambda _m, s: rows.append(s))
    last = rows[-1]
    assert last["key_sum"].shape[-1] <= 5
    torch.testing.assert_close(last["row_sum"], torch.ones_like(last["row_sum"]))


def test_rows_of_a_cached_step_are_not_cut_by_padding_of_the_context():
    """A context that covers the whole cache is cut to the rows of the call, from its end."""
    net = network("llama")
    ids, mask = padded(id_lists("llama", (8, 5)), "left")
    cache, kept = DynamicCache(config=net.config), []
    with torch.no_grad():
        net(input_ids=ids[:, :7], attention_mask=mask[:, :7], past_key_values=cache)
    session = seam.Session(
        wants=lambda _m: Wants("key_sum", "key_viewers", "role_share"),
        context=Context(mask.bool(), torch.zeros_like(mask), (0,)),
        collect=lambda _m, s: kept.append(s),
    )
    with torch.no_grad(), seam.entered(net, session):
        net(input_ids=ids[:, 7:], attention_mask=mask, past_key_values=cache)
    for stats in kept:
        torch.testing.assert_close(stats["key_viewers"], mask.float())
        torch.testing.assert_close(stats["key_sum"].sum(-1), torch.ones(2, 4))
        torch.testing.assert_close(stats["role_share"], torch.ones(2, 4, 1, 1))
