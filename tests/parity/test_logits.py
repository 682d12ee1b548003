"""Outputs under the instrument equal the library's eager path, padded on either side and unpadded, on both paths."""

import oracle
import pytest
import torch

import sinkscope as sk
from parity.common import DECODERS, DUAL, ENCODERS, MULTIMODAL, SEAM, assert_close, id_lists, model, network, padded
from sinkscope import registry, testing
from sinkscope.attention import seam
from sinkscope.attention.view import Context, Wants

TEXT = [*DECODERS, *ENCODERS]
EVERYTHING = Wants(*(name for name in registry.names("statistic") if name not in ("max_weight", "map")))


def outputs(found):
    """What a model returned, as one tensor of positions and features (or of whole-input scores)."""
    for name in ("logits", "last_hidden_state", "logits_per_image"):
        if found.get(name) is not None:
            return found[name]
    raise AssertionError(list(found))


def eager(net, inputs):
    with oracle.implementation(net, "eager"), torch.no_grad():
        return outputs(net(**inputs))


def instrumented(net, inputs, wants, context=None):
    session = seam.Session(wants=lambda _module: wants, context=context)
    with torch.no_grad(), seam.entered(net, session):
        found = outputs(net(**inputs))
    assert len(session.calls) >= 3
    return found, session


@pytest.mark.parametrize("wants", [Wants(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("name", SEAM)
def test_unpadded_outputs_equal_the_eager_path(name, wants):
    inputs = testing.inputs(network(name))
    found, session = instrumented(network(name), inputs, wants)
    assert_close(found, eager(network(name), inputs), name)
    if wants is EVERYTHING:
        assert session.paths == {"blockwise"}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("wants", [Wants(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("name", TEXT)
def test_padded_outputs_equal_the_eager_path(name, wants, side):
    ids, mask = padded(id_lists(name), side)
    inputs, real = {"input_ids": ids, "attention_mask": mask}, mask.bool()
    context = Context(real, torch.zeros_like(ids), (0,))
    found, _ = instrumented(network(name), inputs, wants, context)
    assert torch.isfinite(found).all()
    assert_close(found[real], eager(network(name), inputs)[real], name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_padding_under_the_instrument_equals_each_prompt_alone(name, side):
    lists = id_lists(name)
    ids, mask = padded(lists, side)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    found, _ = instrumented(network(name), inputs, EVERYTHING, Context(mask.bool(), torch.zeros_like(ids), (0,)))
    for row, one in enumerate(lists):
        alone = eager(network(name), {"input_ids": torch.tensor([one])})
        assert_close(found[row, mask[row].bool()], alone[0], f"{name} {side} {row}")


def pad_left(inputs, count, per_token):
    """The same inputs with ``count`` paddings in front of every row."""
    given = dict(inputs)
    for name in per_token & set(given):
        given[name] = torch.nn.functional.pad(given[name], (count, 0))
    mask = torch.ones_like(inputs["input_ids"])
    return given | {"attention_mask": torch.nn.functional.pad(mask, (count, 0))}


PER_TOKEN = {"input_ids", "token_type_ids", "mm_token_type_ids"}


@pytest.mark.parametrize("name", [*DUAL, *MULTIMODAL])
def test_left_padded_processor_output_equals_the_eager_path(name):
    inputs = pad_left(testing.inputs(network(name)), 3, PER_TOKEN)
    real = inputs["attention_mask"].bool()
    found, _ = instrumented(network(name), inputs, Wants())
    wanted = eager(network(name), inputs)
    if name in DUAL:
        assert_close(found, wanted, name)
    else:
        assert_close(found[real], wanted[real], name)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_left_padding_changes_no_reading_of_a_multimodal_model(name):
    inputs = testing.inputs(network(name))
    probes = [sk.KeyMass(), sk.Entropy(), sk.RoleShare(queries="all"), sk.Contribution(), sk.ResidualNorm()]
    plain = sk.run(model(name), sk.Prompts.from_inputs(inputs, model(name)), probes)
    shifted = sk.run(model(name), sk.Prompts.from_inputs(pad_left(inputs, 3, PER_TOKEN), model(name)), probes)
    assert plain.sizes == shifted.sizes
    for variable in plain:
        assert_close(shifted[variable].fillna(-1), plain[variable].fillna(-1), f"{name} {variable}")


@pytest.mark.parametrize("name", DECODERS)
def test_bfloat16_outputs_are_within_its_rounding(name):
    """Ours accumulates in float32, the eager path rounds logits to bfloat16: compare both with float32 weights."""
    narrow = testing.tiny(name).to(torch.bfloat16)
    wide = testing.tiny(name).to(torch.bfloat16).float()
    inputs = testing.inputs(narrow)
    reference = eager(wide, inputs)
    scale = reference.abs().max()
    ours = (instrumented(narrow, inputs, EVERYTHING)[0].float() - reference).abs().max() / scale
    theirs = (eager(narrow, inputs).float() - reference).abs().max() / scale
    assert ours < max(1.5 * theirs, 0.02)
