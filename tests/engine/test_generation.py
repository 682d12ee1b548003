from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import StaticCache

import sinkscope as sk
from sinkscope import applied, generate
from sinkscope.errors import EditError, EditHasNoEffect, ModelError, PromptError, UnsupportedModelError
from sinkscope.models.handle import load_model
from sinkscope.testing import inputs, tiny
from tests.edits.dense import model_and_prompts

EDITS = [
    sk.ScaleKeys(0.2),
    sk.MaskKeys("first", layers=[0, 2], heads=[1]),
    sk.DropKeys([1, 2]),
    sk.ZeroValues("first"),
    sk.ShiftLogits(2.0, keys="generated"),
    sk.SteerKeys(0.05, keys=[2, 3]),
    sk.NullKey(1.0),
    sk.AblateHeads([0], how="zero"),
    sk.AblateHeads([0], how="mean"),
    sk.AblateHeads([0, 1], how="uniform"),
    sk.GateHeads(-1.0, heads=2),
    sk.SwapNormaliser("sigmoid", heads=[3]),
    sk.SetActivations("0.post", dims=[1, 5], value=3.0, keys="all"),
    sk.SetActivations("0.mid", dims=[1, 5], value="mean", keys="all"),
    sk.MaskKeys("first", queries="generated"),
]


def next_tokens(model, prompts, edits) -> list[int]:
    """Greedy next token of each prompt, recomputed from scratch."""
    reading = sk.run(model, prompts, [sk.Logits()], edits, batch_size=len(prompts))
    return reading.logits.values[:, 0].argmax(-1).tolist()


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_an_edit_holds_at_every_decoding_step(name, edit):
    model, prompts = model_and_prompts(name)
    found = generate(model, prompts, [edit], max_new_tokens=3)
    assert all(set(r[n:].tolist()) == {9} for r, n in zip(found.roles, prompts.lengths, strict=True))
    for row in range(len(prompts)):
        alone = prompts.subset([row])
        ids = alone.ids[0].tolist()
        for token in found.ids[row][len(ids) :]:
            roles = np.array([*alone.roles[0], *[9] * (len(ids) - alone.lengths[0])], np.int8)
            now = replace(alone, ids=(np.array(ids),), roles=(roles,), tokens=(("x",) * len(ids),))
            active = [edit] if len(ids) > alone.lengths[0] or "generated" not in repr(edit) else []
            assert next_tokens(model, now, active) == [token]
            ids.append(int(token))


def test_a_model_whose_cache_counts_no_tokens_is_run_without_one():
    """MiniMax's first block keeps no keys, so its cache says that it holds nothing, and a step's mask is of one key."""
    model, prompts = model_and_prompts("minimax")
    plain = generate(model, prompts, max_new_tokens=3)
    edited = generate(model, prompts, [sk.ShiftLogits(-30.0, keys="first"), sk.GateHeads(-1.0, heads=0)], 3)
    for found, edits in ((plain, []), (edited, [sk.ShiftLogits(-30.0, keys="first"), sk.GateHeads(-1.0, heads=0)])):
        for row, start in enumerate(prompts.lengths):
            ids = found.ids[row].tolist()
            for end in range(start, len(ids)):
                assert next_tokens(model, sk.Prompts.from_ids([ids[:end]], model), edits) == [ids[end]]
    with pytest.raises(UnsupportedModelError, match=r"its cache says that it holds no token.*use_cache=False"):
        generate(model, prompts.subset([0]), past_key_values=type(own_cache(model, prompts))())


def own_cache(model, prompts):
    with torch.no_grad():
        return model.model(torch.tensor([prompts.ids[0].tolist()]), use_cache=True).past_key_values


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_left_padding_and_batching_change_nothing(name):
    model, prompts = model_and_prompts(name, lengths=(5, 9, 12))
    edits = [sk.ScaleKeys(3.0), sk.CalibrateSinks(0.2)]
    together = generate(model, prompts, edits, max_new_tokens=5)
    for row in range(3):
        alone = generate(model, prompts.subset([row]), edits, max_new_tokens=5)
        np.testing.assert_array_equal(together.ids[row], alone.ids[0])


def test_logits_of_each_step_equal_recomputation():
    model, prompts = model_and_prompts("gemma2", lengths=(9,))
    edits = [sk.ScaleKeys(0.1, keys=[0, 3]), sk.SetActivations("1.mid", dims=[0], value=-2.0, keys="all")]
    ids = torch.tensor(np.stack(prompts.ids))
    with torch.no_grad(), applied(model, edits, prompts) as tallies:
        out = model.model.generate(
            ids, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
    assert all(tally.touched for tally in tallies)
    full = sk.Prompts.from_ids(out.sequences[:, :-1].tolist(), model)
    reading = sk.run(model, full, [sk.Logits("all")], edits)
    steps = torch.stack(out.logits, 1)[0]
    np.testing.assert_allclose(reading.logits.values[0, 8:], steps, atol=1e-4)


def test_without_edits_it_is_the_models_own_generation():
    model, prompts = model_and_prompts("llama", lengths=(9,))
    ids = torch.tensor(np.stack(prompts.ids))
    own = model.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generate(model, prompts, max_new_tokens=6).ids[0].tolist() == own[0].tolist()
    assert generate(model, prompts, [sk.ScaleKeys(1.0)], max_new_tokens=6).ids[0].tolist() == own[0].tolist()


def test_an_image_prompt_is_continued():
    model = load_model(tiny("llava"))
    prompts = sk.Prompts.from_inputs(inputs(model.model), model)
    found = generate(model, prompts, [sk.MaskKeys("image", queries="generated")], max_new_tokens=3)
    plain = generate(model, prompts, max_new_tokens=3)
    assert found.lengths == plain.lengths == tuple(n + 3 for n in prompts.lengths)
    again = sk.run(model, found, [sk.KeyMass()])
    assert (again.token_role[:, -3:] == "generated").all()


def test_the_model_is_as_before_after_an_exception_inside():
    model, prompts = model_and_prompts("llama")
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
    with pytest.raises(RuntimeError, match="stop"), applied(model, [sk.ScaleKeys(0.1)], prompts):
        raise RuntimeError("stop")
    with (
        pytest.raises(EditError, match=r"row 0 of the inputs is not prompt 0 \(9 tokens\)"),
        applied(model, [sk.ScaleKeys(0.1)], prompts),
    ):
        model.model(input_ids=torch.tensor([[1, 2], [3, 4]]))
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
    assert model.model.config._attn_implementation == "sdpa"
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_inputs_that_do_not_fit_are_refused():
    model, prompts = model_and_prompts("llama")
    with (
        pytest.raises(EditError, match=r"the model was given 3 rows, but there are 2 prompts"),
        applied(model, [sk.ScaleKeys(0.1)], prompts),
    ):
        model.model(input_ids=torch.ones(3, 12, dtype=torch.long))
    with (
        pytest.raises(EditError, match=r"a run takes its own edits\. Pass it edits="),
        applied(model, [sk.ScaleKeys(0.1)], prompts),
    ):
        sk.run(model, prompts, [sk.KeyMass()])
    with (
        pytest.raises(EditError, match=r"called without input_ids, inputs_embeds, pixel_values"),
        applied(model, [sk.ScaleKeys(0.1)], prompts),
    ):
        model.model()


def test_what_cannot_be_generated_is_refused():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(PromptError, match=r"max_new_tokens=0\): use a whole number of at least 1"):
        generate(model, prompts, max_new_tokens=0)
    with pytest.raises(PromptError, match=r"12 tokens|make 312, but this model's context length is 256"):
        generate(model, prompts, max_new_tokens=300)
    with pytest.raises(PromptError, match="one continuation per prompt"):
        generate(model, prompts, num_return_sequences=2)
    with pytest.raises(EditHasNoEffect, match=r"MaskKeys\('image'\) changes nothing in .*: none of the 2 prompts has"):
        generate(model, prompts, [sk.MaskKeys("image")], max_new_tokens=2)
    encoder, words = model_and_prompts("bert_base")
    with pytest.raises(PromptError, match=r"\(BertModel\) generates no text\. Use a decoder"):
        generate(encoder, words)


def test_generation_mode_turns_attention_to_what_was_written():
    model, prompts = model_and_prompts("llama", lengths=(6,))
    written = generate(model, prompts, max_new_tokens=4)
    mode = sk.SteerKeys(0.01, mode="generation")
    assert mode == sk.SteerKeys(0.01, keys="generated", mode="generation")
    steered = sk.run(model, written, [sk.RoleShare(queries="generated")], [mode])
    plain = sk.run(model, written, [sk.RoleShare(queries="generated")])
    assert float((steered.role_share - plain.role_share).sel(role="generated").min()) > 0
    by_hand = sk.run(model, written, [sk.Logits()], [sk.ScaleKeys(0.01, keys=list(range(6)))])
    np.testing.assert_allclose(sk.run(model, written, [sk.Logits()], [mode]).logits, by_hand.logits, atol=1e-5)
    assert generate(model, prompts, [mode], max_new_tokens=4).lengths == (10,)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_static_cache_gives_the_same_tokens(name):
    model, prompts = model_and_prompts(name)
    edits = [sk.ScaleKeys(0.1)]
    static = generate(model, prompts, edits, max_new_tokens=3, cache_implementation="static")
    for row, dynamic in zip(static.ids, generate(model, prompts, edits, max_new_tokens=3).ids, strict=True):
        np.testing.assert_array_equal(row, dynamic)
    cache = StaticCache(model.config, max_cache_len=32)
    with pytest.raises(UnsupportedModelError, match="Leave past_key_values out, and say cache_implementation=static"):
        generate(model, prompts, max_new_tokens=2, past_key_values=cache)
    ids = torch.tensor(prompts.ids[0])[None]
    alone = prompts.subset([0])
    with (
        pytest.raises(UnsupportedModelError, match="Leave cache_implementation out"),
        applied(model, [sk.ScaleKeys(0.1)], alone),
    ):
        model.model.generate(ids, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
    expected = generate(model, prompts, [sk.ScaleKeys(0.1)], max_new_tokens=3)
    model.model.generation_config.cache_implementation = "static"
    try:
        found = generate(model, prompts, [sk.ScaleKeys(0.1)], max_new_tokens=3)
    finally:
        model.model.generation_config.cache_implementation = None
    assert [row.tolist() for row in found.ids] == [row.tolist() for row in expected.ids]


def test_a_cache_that_wants_a_gpu_is_refused_by_what_it_says(monkeypatch):
    model, prompts = model_and_prompts("llama")

    def wants_a_gpu(**_):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(model.model, "generate", wants_a_gpu, raising=False)
    with pytest.raises(PromptError, match=r"refuses to continue .*AssertionError.*\. Try model\.model\.generate"):
        generate(model, prompts, [sk.ScaleKeys(0.1)], max_new_tokens=2, cache_implementation="offloaded")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_not_padding(bad):
    model = load_model(tiny("llama"))
    with torch.no_grad():  # afterwards: loading refuses such weights, here they stand for an overflow
        model.model.lm_head.weight[5] = bad
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7], [1, 9, 12]], model)
    with pytest.raises(ModelError, match=r"generate: the logits of .* are NaN or infinite at token 4"):
        generate(model, prompts, max_new_tokens=2)
    with pytest.raises(ModelError, match="NaN or infinite"):
        generate(model, prompts, [sk.ScaleKeys(0.5)], max_new_tokens=2, do_sample=True)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2"])
def test_a_wrong_batch_size_is_refused(size):
    model, prompts = model_and_prompts("llama")
    with pytest.raises(PromptError, match=r"batch_size=.*: use a whole number of at least 1"):
        generate(model, prompts, max_new_tokens=1, batch_size=size)


def test_beams_run_edited():
    model, prompts = model_and_prompts("llama", lengths=(9, 9))
    beams = generate(model, prompts, [sk.ScaleKeys(0.1)], max_new_tokens=4, num_beams=2)
    assert beams.lengths == (13, 13)
