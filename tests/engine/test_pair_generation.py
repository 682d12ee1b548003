"""Generation by encoder-decoders under edits, in each tower, equals recomputing every step without a cache."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing

SOURCES, TARGETS = ([5, 6, 7, 8, 9, 10], [11, 12, 13, 14]), ([2, 20, 21], [2, 22, 23])
STEPS = 4
EDITS = {
    "encoder": sk.MaskKeys([1]), "decoder": sk.MaskKeys([1]), "cross": sk.ScaleKeys(0.01, keys=[0, 1], queries="all"),
}  # fmt: skip


def pairs(name, with_target=True):
    # The cache that the library makes for T5 has as many layers as the encoder.
    network = testing.tiny(name, **({"num_decoder_layers": 2} if name == "t5" else {}))
    network.generation_config.eos_token_id = None
    model = sk.load_model(network)
    targets = [[network.config.decoder_start_token_id, *ids[1:]] for ids in TARGETS]
    if with_target:
        return model, sk.Prompts.from_pairs(list(zip(SOURCES, targets, strict=True)), model)
    return model, sk.Prompts.from_ids(SOURCES, model)


def recomputed(model, prompts, edit, tower):
    """Greedy tokens, each from a run of everything so far."""
    targets = [ids.tolist() for ids in prompts.other.ids]
    for _ in range(STEPS):
        now = sk.Prompts.from_pairs(list(zip(SOURCES, targets, strict=True)), model)
        edits = [] if edit is None else [edit]
        last = sk.run(model, now, [sk.Logits("last")], edits, tower=tower).logits.values[:, 0]
        targets = [[*ids, int(scores.argmax())] for ids, scores in zip(targets, last, strict=True)]
    return targets


@pytest.mark.parametrize("tower", [None, *EDITS])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_each_step_equals_recomputation(name, tower):
    model, prompts = pairs(name)
    edit = EDITS.get(tower)
    found = sk.generate(model, prompts, [] if edit is None else [edit], STEPS, tower=tower)
    assert [ids.tolist() for ids in found.other.ids] == recomputed(model, prompts, edit, tower)
    reading = sk.run(model, found, [sk.KeyMass()])
    assert (reading.token_role[:, -STEPS:] == "generated").all()
    assert (reading.token_role[:, 1:-STEPS] != "generated").all()


def test_an_edit_of_the_encoder_changes_what_is_written():
    model, prompts = pairs("t5")
    plain, edited = (
        sk.generate(model, prompts, edits, 8, tower="encoder") for edits in ([], [sk.AblateHeads(range(4))])
    )
    assert [ids.tolist() for ids in plain.other.ids] != [ids.tolist() for ids in edited.other.ids]


def test_a_source_alone_begins_its_target():
    model, prompts = pairs("bart", with_target=False)
    found = sk.generate(model, prompts, [sk.MaskKeys([0], queries="generated")], STEPS, tower="cross")
    assert found.other.lengths == (1 + STEPS,) * 2
    assert [ids[0] for ids in found.other.ids] == [model.config.decoder_start_token_id] * 2


def test_without_edits_it_is_the_models_own_generation():
    model, prompts = pairs("t5", with_target=False)
    source = torch.tensor([SOURCES[0]])
    own = model.model.generate(source, max_new_tokens=STEPS, do_sample=False)
    found = sk.generate(model, prompts.subset([0]), max_new_tokens=STEPS)
    np.testing.assert_array_equal(found.other.ids[0], own[0])


def test_applied_takes_a_plain_pass_of_each_tower():
    model, prompts = pairs("bart")
    one = prompts.subset([0])
    inputs = {"input_ids": torch.tensor([SOURCES[0]]), "decoder_input_ids": torch.tensor(one.other.ids[0])[None]}
    for tower, edit in EDITS.items():
        with torch.no_grad(), sk.applied(model, [edit], one, tower=tower) as tallies:
            logits = model.model(**inputs).logits[0]
        assert tallies[0].touched
        wanted = sk.run(model, one, [sk.Logits("all")], [edit], tower=tower).logits.values[0]
        np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_a_static_cache_is_refused_with_a_way_out():
    model, prompts = pairs("bart")
    with pytest.raises(sk.errors.UnsupportedModelError, match="past_key_values out, and cache_implementation too"):
        sk.generate(model, prompts, max_new_tokens=2, cache_implementation="static")


def test_whispers_own_generation_is_refused():
    model = sk.load_model(testing.tiny("whisper"))
    given = sk.Prompts.from_inputs(testing.inputs(model.model), model)
    with pytest.raises(sk.errors.UnsupportedModelError, match="writes by a procedure of its own"):
        sk.generate(model, given, max_new_tokens=2)
