"""Prompts made for another model are refused; those of another checkpoint with the same tokenizer and processor run."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from vlm_models import image, tokenizer, vlm

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.models.handle import Model
from sinkscope.prompts import Prompts
from sinkscope.testing import tiny

MASS = [sk.KeyMass()]


def other_tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["[s]"],
        show_progress=False,
    )
    core.train_from_iterator(["another text entirely"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="[s]")


def text_model(seed=0, which=None, **config):
    torch.manual_seed(seed)
    network = tiny("llama", vocab_size=512, bos_token_id=0, **config)
    torch.nn.init.normal_(network.model.embed_tokens.weight)
    return sk.load_model(network, tokenizer=which or tokenizer())


def picture_model(family, **settings):
    made = vlm(family, **settings)
    return Model(made.model, tokenizer=made.tokenizer, processor=made.processor)


def test_another_tokenizer_is_refused_by_every_verb():
    prompts = Prompts.from_texts(["the cat sat."], text_model())
    other = text_model(which=other_tokenizer())
    message = (
        r"made with another tokenizer: id \d+ of prompt 0 is '.*' there and '.*' in this model\. Build the prompts"
    )
    with pytest.raises(PromptError, match=f"run: these prompts were {message}"):
        sk.run(other, prompts, MASS)
    with pytest.raises(PromptError, match=message):
        sk.sweep(other, prompts, {"none": []}, MASS)
    with pytest.raises(PromptError, match=f"generate: these prompts were {message}"):
        sk.generate(other, prompts)
    with pytest.raises(PromptError, match=f"applied: these prompts were {message}"), sk.applied(other, [], prompts):
        pass


def test_another_checkpoint_with_the_same_tokenizer_runs():
    prompts = Prompts.from_texts(["the cat sat."], text_model())
    grown = copy.deepcopy(tokenizer())
    grown.add_special_tokens({"additional_special_tokens": ["<new>"]})
    for model in (text_model(1), text_model(1, copy.deepcopy(tokenizer())), text_model(1, grown)):
        again = Prompts.from_texts(["the cat sat."], model)
        np.testing.assert_array_equal(sk.run(model, prompts, MASS)["key_mass"], sk.run(model, again, MASS)["key_mass"])


def test_without_a_tokenizer_only_the_size_of_the_vocabulary_is_known():
    bare = sk.load_model(tiny("llama"))
    small = Prompts.from_ids([[1, 5, 7]], text_model())
    sk.run(bare, small, MASS)
    large = Prompts.from_ids([[1, 500]], text_model())
    with pytest.raises(PromptError, match=r"prompt 0 holds token id 500, but this model's vocabulary ends at 95"):
        sk.run(bare, large, MASS)


def test_images_do_not_vanish_in_a_text_model():
    prompts = Prompts.from_chat([{"image": image(16, 16), "text": "What?"}], picture_model("llava"))
    with pytest.raises(PromptError, match=r"hold images, and this model \(a text decoder\) takes none"):
        sk.run(text_model(), prompts, MASS)


def test_texts_and_pictures_alone_are_not_mixed_up():
    encoder = sk.load_model(tiny("vit"))
    pictures = Prompts.from_images([torch.zeros(3, 16, 16)], encoder)
    texts = Prompts.from_ids([[1, 5]], text_model())
    with pytest.raises(PromptError, match="these prompts are text, and this model reads images alone"):
        sk.run(encoder, texts, MASS)
    with pytest.raises(PromptError, match=r"hold images, and this model \(a text decoder\) takes none"):
        sk.run(text_model(), pictures, MASS)
    with pytest.raises(PromptError, match="these prompts are images alone, and this model reads text"):
        sk.run(picture_model("llava"), pictures, MASS)


def test_another_image_processor_is_refused():
    items = [{"image": image(64, 48), "text": "What?"}]
    prompts = Prompts.from_chat(items, picture_model("llava"))
    sk.run(picture_model("llava"), prompts, MASS)
    other = picture_model("llava", image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(
        PromptError, match=r"prepared for another image processor: image_mean is \(.*\) there and \(0\.1"
    ):
        sk.run(other, prompts, MASS)


def test_another_family_is_refused():
    prompts = Prompts.from_chat([{"image": image(64, 48), "text": "What?"}], picture_model("qwen2_vl"))
    with pytest.raises(
        PromptError, match="prepared for another model: model type is qwen2_vl there and qwen2_5_vl here"
    ):
        sk.run(picture_model("qwen2_5_vl"), prompts, MASS)


def test_another_vision_encoder_is_refused():
    plain, registers = sk.load_model(tiny("dinov2")), sk.load_model(tiny("dinov2_with_registers"))
    prompts = Prompts.from_images([torch.zeros(3, 16, 16)], plain)
    assert prompts.images is not None
    assert prompts.images.processor == {}
    with pytest.raises(PromptError, match="prepared for another model: model type is dinov2 there"):
        sk.run(registers, prompts, MASS)
    sk.run(sk.load_model(tiny("dinov2")), prompts, MASS)


def test_texts_carry_no_image_settings():
    model = picture_model("llava")
    assert Prompts.from_chat([{"text": "What?"}], model).images is None
    assert Prompts.from_texts(["What?"], model).images is None
