"""First mistakes with prompts: an error of our own that says what to do, or a warning; never a wrong number."""

import warnings

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM
from vlm_models import image, tokenizer, vlm

import sinkscope as sk
from sinkscope.errors import ModelError, PromptError, SinkscopeWarning
from sinkscope.prompts import Prompts
from sinkscope.testing import tiny

TEXTS = ["the cat sat.", "What color is the square?"]


@pytest.fixture(scope="module")
def model():
    return sk.load_model(tiny("llama", vocab_size=512, bos_token_id=0), tokenizer=tokenizer())


NOT_PROMPTS = [
    (TEXTS, r"got a list of 2 str\. Build them first: Prompts\.from_texts\(\[\.\.\.\], model\)"),
    ("the cat", r"got the text 'the cat'\. Build them first: Prompts\.from_texts"),
    ([[1, 2]], r"got a list of 1 list\. Build them first: Prompts\.from_ids"),
    (torch.tensor([[1, 2]]), r"got a Tensor\. Build them first: Prompts\.from_ids"),
    ([{"text": "a"}], r"got a list of 1 dict\. Build them first: Prompts\.from_chat"),
    ([], r"got an empty list\. Build them first: Prompts\.from_texts, from_ids"),
    (None, r"got a NoneType\. Build them first: Prompts\.from_texts, from_ids"),
]


@pytest.mark.parametrize(("given", "message"), NOT_PROMPTS)
def test_what_is_no_prompts_is_refused_by_every_verb(model, given, message):
    with pytest.raises(PromptError, match=f"run: expected Prompts, {message}"):
        sk.run(model, given, [sk.KeyMass()])
    with pytest.raises(PromptError, match=message):
        sk.sweep(model, given, {"none": []}, [sk.KeyMass()])
    with pytest.raises(PromptError, match=f"generate: expected Prompts, {message}"):
        sk.generate(model, given)


def test_a_name_is_no_model():
    with pytest.raises(
        ModelError, match=r"expected a model, got the text 'name'\. Load it first: model = sinkscope\.load"
    ):
        sk.run("name", "text")
    with pytest.raises(ModelError, match="got a LlamaForCausalLM"):
        sk.run(tiny("llama"), "text")


@pytest.mark.parametrize("make", ["from_texts", "from_ids", "from_images", "from_chat", "from_inputs", "from_pairs"])
def test_prompts_of_a_model_that_was_not_loaded(make):
    with pytest.raises(ModelError, match=rf"{make}: expected a model, got a LlamaForCausalLM\. Load it first: model ="):
        getattr(Prompts, make)(["the cat"], tiny("llama"))
    with pytest.raises(ModelError, match=rf"{make}: expected a model, got the text 'name'\. Load it first"):
        getattr(Prompts, make)(["the cat"], "name")


@pytest.mark.parametrize("ids", [[[1, True]], [[1.0, 2.0]], [[1, [2, 3]]], [[1, None]], [["1"]], [[2**70]], [[1, 2.5]]])
def test_ids_of_another_type(model, ids):
    with pytest.raises(PromptError, match=r"prompt 0: expected a flat list of token ids \(whole numbers\)"):
        Prompts.from_ids(ids, model)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.complex64])
def test_inputs_of_another_type(model, kind):
    with pytest.raises(PromptError, match=r"input_ids have the shape \(prompt, token\), got torch"):
        Prompts.from_inputs({"input_ids": torch.ones(1, 3).to(kind)}, model)


def test_half_a_character(model):
    with pytest.raises(
        PromptError, match=r"prompt 1: character 2 is a lone surrogate \(U\+D83D\), half of a character"
    ):
        Prompts.from_texts(["a", "ab\ud83d"], model)
    with pytest.raises(PromptError, match="prompt 0: character 0 is a lone surrogate"):
        Prompts.from_chat([{"text": "\udc00"}], vlm("llava"))


def test_two_beginnings_are_warned_of(model):
    with pytest.warns(SinkscopeWarning, match=r"from_texts: 1 of 2 prompts \(the first is prompt 1\) begin with two"):
        Prompts.from_texts(["the cat", "<s>the cat"], model)
    given = tokenizer()(["<s>the cat"], return_tensors="pt")
    with pytest.warns(SinkscopeWarning, match=r"from_inputs: 1 of 1 prompts .*'<s>'\. .* use add_bos=False"):
        Prompts.from_inputs(given, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Prompts.from_texts(["<s>the cat"], model, add_bos=False).tokens[0].count("<s>") == 1
        Prompts.from_texts(["the<s><s>cat"], model)


def test_a_template_that_writes_two_beginnings_is_warned_of():
    handle = vlm("llava")
    handle.processor.chat_template = "<s><s>" + handle.processor.chat_template
    with pytest.warns(SinkscopeWarning, match="from_chat: 1 of 1 prompts"):
        Prompts.from_chat([{"text": "a"}], handle)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_a_mask_that_hides_middle_tokens_is_honoured(name):
    """Hidden tokens keep their places: logits and key mass are those of the library's eager pass on the same inputs."""
    handle = sk.load_model(tiny(name))
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1, 1]])
    prompts = Prompts.from_inputs({"input_ids": ids, "attention_mask": mask}, handle)
    assert prompts.lengths == (5, 5)
    found = sk.run(handle, prompts, [sk.Logits(positions="all"), sk.KeyMass()])
    eager = tiny(name)
    eager.load_state_dict(handle.model.state_dict())
    eager.set_attn_implementation("eager")
    expected = eager(input_ids=ids, attention_mask=mask, output_attentions=True)
    for row, keep in enumerate(mask.bool()):
        np.testing.assert_allclose(found["logits"][row], expected.logits[row][keep], atol=2e-5)
        for layer, weights in enumerate(expected.attentions):
            own = weights[row][:, keep][:, :, keep]
            mass = own.sum(1) / (own > 0).sum(1)  # a masked weight is exactly 0, one outside Gemma 2's window too
            np.testing.assert_allclose(found["key_mass"][row, layer], mass, atol=2e-5)


def test_roberta_takes_two_tokens_less_than_its_table():
    config = RobertaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=34,
    )  # fmt: skip
    handle = sk.load_model(RobertaForMaskedLM(config).eval())
    assert handle.context_length == 32
    assert sk.run(handle, Prompts.from_ids([[0] + [7] * 31], handle), [sk.KeyMass()]).sizes["key"] == 32
    with pytest.raises(PromptError, match="prompt 0 has 33 tokens, but this model's context length is 32"):
        Prompts.from_ids([[0] + [7] * 32], handle)
    assert sk.load_model(tiny("bert")).context_length == tiny("bert").config.max_position_embeddings


@pytest.mark.parametrize("name", ["clip", "siglip"])
@torch.no_grad()
def test_texts_alone_are_read_by_the_text_part(name):
    handle = sk.load_model(tiny(name))
    ids = torch.tensor([[1, 5, 2], [1, 6, 7]])
    alone = sk.run(handle, Prompts.from_ids(ids.tolist(), handle), [sk.KeyMass(), sk.ResidualNorm()], batch_size=2)
    both = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}
    together = sk.run(handle, Prompts.from_inputs(both, handle), [sk.KeyMass(), sk.ResidualNorm()])
    for variable in ("key_mass", "residual_norm"):
        np.testing.assert_allclose(alone[variable], together[variable], atol=1e-6)
    with pytest.raises(PromptError, match="hold no images for the vision tower"):
        sk.run(handle, Prompts.from_ids(ids.tolist(), handle), [sk.KeyMass()], tower="vision")


def test_pixels_and_placeholders_that_do_not_fit():
    handle = vlm("llava")
    asked = Prompts.from_chat([{"image": [image(16, 16)] * 2, "text": "What?"}], handle)
    whole = dict(asked.batch([0]).inputs)
    one_picture = whole | {"pixel_values": whole["pixel_values"][:1]}
    with pytest.raises(PromptError, match=r"prompt 0: 32 image placeholders, but its 1 images give 16 tokens"):
        Prompts.from_inputs(one_picture, handle)
    three = whole | {"pixel_values": whole["pixel_values"][[0, 1, 0]]}
    with pytest.raises(PromptError, match=r"the prompts hold \[32\] image placeholders, and pixel_values 3 pictures"):
        Prompts.from_inputs(three, handle)
    larger = whole | {"pixel_values": torch.zeros(2, 3, 20, 20)}
    with pytest.raises(PromptError, match="32 image placeholders, but its 2 images give 50 tokens"):
        Prompts.from_inputs(larger, handle)
    positions = {"input_ids": whole["input_ids"], "position_ids": torch.arange(asked.lengths[0])[None]}
    with pytest.raises(PromptError, match="holds 32 image placeholder tokens but there are no pixel_values"):
        Prompts.from_inputs(positions, handle)


@pytest.mark.parametrize("name", ["inputs_embeds", "logits_to_keep"])
def test_what_says_how_a_model_is_run_is_no_part_of_a_prompt(model, name):
    """The one raised the model's own error, the other put the logits of the last token beside the first."""
    given = {"input_ids": torch.tensor([[5, 6, 7]]), name: torch.ones(1, 3, 8) if "embeds" in name else torch.tensor(1)}
    with pytest.raises(PromptError, match=f"'{name}' says how the model is run and is no part of a prompt"):
        sk.Prompts.from_inputs(given, model)
