"""The registered attention function: what it hears, what it leaves behind; outside a session nothing changes."""

import pytest
import torch

from sinkscope import testing
from sinkscope.attention import seam
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.view import Wants


def state(net):
    return [config._attn_implementation_internal for config in seam.configs(net)]


def logits(net, ids):
    with torch.no_grad():
        return net(input_ids=ids).logits


def test_each_layer_calls_once_in_order_with_its_own_shapes():
    net = testing.tiny("llama")
    ids, seen = testing.text_ids(net, length=6), []
    session = seam.Session(observe=lambda module, call: seen.append((module, call)))
    with seam.entered(net, session):
        logits(net, ids)
    assert [m for m, _ in seen] == [block.self_attn for block in net.model.layers] == session.calls
    for _, call in seen:
        assert call.query.shape == (2, 4, 6, 8)
        assert call.key.shape == call.value.shape == (2, 2, 6, 8)
        assert call.mask.kind == "causal"
        assert call.scale == pytest.approx(8**-0.5)
        assert (call.bias, call.softcap, call.sink_logits, call.normaliser) == (None, None, None, "softmax")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gemma2", {"softcap": 4.0}), ("gpt_oss", {"sink_logits": 4}), ("mistral", {"kind": "rule"})],
)
def test_what_is_special_about_an_architecture_arrives(name, expected):
    net, seen = testing.tiny(name), []
    with seam.entered(net, seam.Session(observe=lambda _m, call: seen.append(call))):
        logits(net, testing.text_ids(net, length=8))
    for call in seen:
        assert call.softcap == expected.get("softcap")
        assert (None if call.sink_logits is None else len(call.sink_logits)) == expected.get("sink_logits")
    assert expected.get("kind", "rule") in {call.mask.kind for call in seen}


@pytest.mark.parametrize("name", ["llama", "clip", "llava", "gemma3"])
def test_every_config_is_routed_inside_and_put_back(name):
    net = testing.tiny(name)
    net.set_attn_implementation("eager")
    seam.configs(net)[-1]._attn_implementation_internal = "sdpa"  # parts may differ from each other
    before = state(net)
    assert len(set(before)) == (2 if len(before) > 1 else 1)
    with seam.entered(net, seam.Session()):
        assert set(state(net)) == {seam.NAME}
    assert state(net) == before


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_a_session_undoes_it(raised):
    net = testing.tiny("llama")
    ids = testing.text_ids(net)
    before, wanted = state(net), logits(net, ids)

    def fail(_module, _stats):
        raise raised

    session = seam.Session(wants=lambda _m: Wants("entropy"), collect=fail)
    with pytest.raises(raised), seam.entered(net, session):
        logits(net, ids)
    assert state(net) == before
    assert torch.equal(logits(net, ids), wanted)
    assert seam._active.get() is None


def test_sessions_nest_and_the_outer_one_goes_on():
    net, other = testing.tiny("llama"), testing.tiny("gpt2")
    outer, inner = seam.Session(), seam.Session()
    with seam.entered(net, outer):
        logits(net, testing.text_ids(net))
        with seam.entered(other, inner):
            logits(other, testing.text_ids(other))
        logits(net, testing.text_ids(net))
    assert (len(outer.calls), len(inner.calls)) == (6, 3)


def test_outside_a_session_the_function_computes_plain_attention():
    net = testing.tiny("mistral")
    ids = testing.text_ids(net)
    net.set_attn_implementation("eager")
    wanted = logits(net, ids)
    net.set_attn_implementation(seam.NAME)
    torch.testing.assert_close(logits(net, ids), wanted, rtol=1e-5, atol=1e-5)


def test_edits_and_wants_are_asked_once_per_call():
    net, asked = testing.tiny("llama"), []

    def wants(module):
        asked.append(("wants", module.layer_idx))
        return Wants()

    def edits(module, call):
        asked.append(("edits", module.layer_idx, call.query.shape[2]))
        return CallEdits()

    with seam.entered(net, seam.Session(wants=wants, edits=edits)):
        logits(net, testing.text_ids(net, length=5))
    assert asked == [entry for layer in range(3) for entry in (("wants", layer), ("edits", layer, 5))]


def test_statistics_name_the_path_they_came_by():
    net, found = testing.tiny("llama"), []
    session = seam.Session(
        wants=lambda m: Wants("entropy" if m.layer_idx == 1 else "value_norm"),
        collect=lambda _m, stats: found.append((stats.path, "entropy" in stats, "value_norm" in stats)),
    )
    with seam.entered(net, session):
        logits(net, testing.text_ids(net))
    assert [has for _, *has in found] == [[False, True], [True, False], [False, True]]
    assert session.paths == {"fused", "blockwise"}


def test_under_autocast_a_call_is_computed_in_the_type_of_the_models_own_products():
    """Rotary positions leave queries in float32 beside values in bfloat16: the pass ended in a raw error of torch."""
    net, parts = testing.tiny("llama"), []
    ids = testing.text_ids(net, length=6)
    session = seam.Session(observe=lambda _, call: parts.extend((call.query, call.key, call.value)))
    with torch.autocast("cpu", torch.bfloat16):
        net.set_attn_implementation("eager")
        wanted = logits(net, ids)
        with seam.entered(net, session):
            found = logits(net, ids)
        assert torch.is_autocast_enabled("cpu")
    assert {part.dtype for part in parts} == {torch.bfloat16}
    torch.testing.assert_close(found.float(), wanted.float(), atol=2e-2 * float(wanted.abs().max()), rtol=0)
