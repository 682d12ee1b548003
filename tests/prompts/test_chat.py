"""Questions about images: roles of a chat, further inputs, errors; processor output that is run whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from vlm_models import FAMILIES, image, vlm

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.models.handle import Model
from sinkscope.prompts import Prompts
from sinkscope.prompts.chat import mark_chat
from sinkscope.roles import ROLE_INDEX, ROLES
from sinkscope.testing import tiny


def by_role(prompts, role, which=0):
    """Join the tokens of one role, as they read."""
    chosen = prompts.roles[which] == ROLE_INDEX[role]
    return "".join(t for t, c in zip(prompts.tokens[which], chosen, strict=True) if c)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_of_a_chat(family):
    model = vlm(family)
    items = [{"image": image(64, 48), "text": "What color is the cat?", "system": "the square, helpful."}]
    prompts = Prompts.from_chat(items, model)
    assert by_role(prompts, "text").strip() == "What color is the cat"
    assert by_role(prompts, "punctuation") == ",.?"
    assert by_role(prompts, "system") == "the square helpful"
    assert by_role(prompts, "bos") == "<s>"
    markup = by_role(prompts, "special")
    assert "<|im_start|>system\\n" in markup
    assert markup.endswith("<|im_start|>assistant\\n")
    visual = prompts.ids[0] == model.config.image_token_id
    assert set(prompts.roles[0][visual]) <= {ROLE_INDEX["image"], ROLE_INDEX["special"]}
    assert not (prompts.roles[0][~visual] == ROLE_INDEX["image"]).any()
    assert prompts.key0 == "bos '<s>'"


def test_a_system_message_of_the_template_is_found():
    prompts = Prompts.from_chat([{"image": image(64, 48), "text": "What?"}], vlm("qwen2_vl"))
    assert by_role(prompts, "system") == "You are a helpful assistant"
    assert by_role(prompts, "text") == "What"


def test_a_question_that_repeats_the_system_message_keeps_its_roles():
    items = [{"image": image(64, 48), "text": "the cat", "system": "the cat"}]
    prompts = Prompts.from_chat(items, vlm("llava"))
    assert by_role(prompts, "text") == by_role(prompts, "system") == "the cat"
    assert (
        np.flatnonzero(prompts.roles[0] == ROLE_INDEX["text"]).min()
        > np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"]).max()
    )


def test_roles_of_a_question_in_many_scripts():
    text = "\u00bfCu\u00e1l? \U0001f600\n\u4e2d\u6587 </s> <script>"
    prompts = Prompts.from_chat([{"image": image(64, 48), "text": text}], vlm("llava"))
    assert all(token.isprintable() for token in prompts.tokens[0])
    assert "newline" in {ROLES[r] for r in prompts.roles[0]}
    assert "<script" not in prompts._repr_html_()


def test_a_question_that_cannot_be_found_keeps_running_roles():
    roles = np.array([ROLE_INDEX["bos"], ROLE_INDEX["text"], ROLE_INDEX["punctuation"]], dtype=np.int8)
    np.testing.assert_array_equal(mark_chat(roles, [b"", b"lower", b"."], "UPPER.", None), roles)


def test_without_a_template_the_prompt_is_plain():
    model = vlm("llava")
    model.processor.chat_template = None
    prompts = Prompts.from_chat([{"image": image(64, 48), "text": "What?", "system": "the cat."}], model)
    assert "".join(prompts.tokens[0]) == "<s>the cat.\\n" + "<image>" * 16 + "\\nWhat?"


def test_a_template_that_writes_the_bos_gets_no_second_one():
    model = vlm("llava")
    model.processor.chat_template = "<s>" + model.processor.chat_template
    prompts = Prompts.from_chat([{"image": image(64, 48), "text": "What?"}], model)
    assert prompts.tokens[0].count("<s>") == 1


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_gets_its_token_types_even_if_the_processor_forgets(family):
    model = vlm(family)
    items = [{"image": image(64, 48), "text": "What?"}]
    made = Prompts.from_chat(items, model)
    original = model.processor
    model.processor = Forgetful(original)
    forgotten = Prompts.from_chat(items, model)
    torch.testing.assert_close(forgotten.extras[0]["mm_token_type_ids"], made.extras[0]["mm_token_type_ids"])
    assert forgotten.digest == made.digest
    assert made.batch([0]).inputs["mm_token_type_ids"].shape == (1, made.lengths[0])


class Forgetful:
    def __init__(self, processor):
        self._processor = processor

    def __call__(self, **given):
        made = dict(self._processor(**given))
        made.pop("mm_token_type_ids")
        return made

    def __getattr__(self, name):
        return getattr(self._processor, name)


def test_a_question_without_an_image():
    prompts = Prompts.from_chat([{"text": "What?"}, {"image": None, "text": "the cat"}], vlm("llava"))
    assert prompts.grids == (None, None)
    assert prompts.extras == ({}, {})
    assert set(prompts.batch([0]).inputs) == {"input_ids"}


ANSWERED = {"image": image(64, 48), "text": "What color is the square?", "answer": "the square. cat"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_tokenised_where_it_stands(family):
    model = vlm(family)
    asked = Prompts.from_chat([{k: v for k, v in ANSWERED.items() if k != "answer"}], model)
    prompts = Prompts.from_chat([ANSWERED], model)
    length = asked.lengths[0]
    np.testing.assert_array_equal(prompts.ids[0][:length], asked.ids[0])
    np.testing.assert_array_equal(prompts.roles[0][:length], asked.roles[0])
    assert (prompts.roles[0][length:] == ROLE_INDEX["answer"]).all()
    assert "".join(prompts.tokens[0][length:]) == "the square. cat"
    # After ChatML's newline there is no space in front of the word; that token is another one.
    whole = model.tokenizer("assistant\nthe square. cat", add_special_tokens=False)["input_ids"]
    assert prompts.ids[0][length:].tolist() == whole[-(prompts.lengths[0] - length) :]


def test_an_answer_gets_the_space_that_the_template_writes():
    model = vlm("llava")
    model.processor.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
        "{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    spaced = Prompts.from_chat([{"text": "What?", "answer": "cat"}], model)
    assert [t for t, r in zip(spaced.tokens[0], spaced.roles[0], strict=True) if r == ROLE_INDEX["answer"]] == [" cat"]
    model.processor.chat_template = (
        "{{ raise_exception('one question only') if messages|length > 1 }}Q: {{ messages[0].content[0].text }} A:"
    )
    fallen_back = Prompts.from_chat([{"text": "What?", "answer": "cat"}], model)
    assert fallen_back.tokens[0][-1] == " cat"


@torch.no_grad()
def test_prompts_without_answers_read_as_before():
    made = vlm("llava")
    model = Model(made.model, tokenizer=made.tokenizer, processor=made.processor)
    asked = Prompts.from_chat([{"text": "What color?"}], model)
    probes = [sk.RoleShare(queries="all"), sk.Contribution()]
    plain = sk.run(model, asked, probes)
    old = ["bos", "system", "user", "text", "image", "punctuation", "newline", "special", "register", "generated"]
    assert plain.role.values.tolist() == old
    answered = sk.run(model, Prompts.from_chat([{"text": "What color?", "answer": "cat"}], model), probes)
    assert answered.role.values.tolist() == [*old, "answer"]
    np.testing.assert_allclose(answered.role_share.sum("role"), 1, atol=1e-5)
    assert float(answered.contribution.sel(role="answer").max()) > 0


@pytest.mark.parametrize(("text", "answer"), [("the cat", "the cat"), ("cat", "a cat cat"), ("What?", "cat. \n ")])
def test_question_and_answer_are_told_apart(text, answer):
    prompts = Prompts.from_chat([{"text": text, "answer": answer}], vlm("llava"))
    assert by_role(prompts, "answer").replace("\\n", "\n").strip() == answer.strip()
    assert by_role(prompts, "text") == text.replace("?", "")


@torch.no_grad()
def test_the_loss_of_an_answer_is_the_models_own():
    made = vlm("llava")
    model = Model(made.model, tokenizer=made.tokenizer, processor=made.processor)
    prompts = Prompts.from_chat([ANSWERED, {"text": "What?", "answer": "cat"}], model)
    reading = sk.run(model, prompts, [sk.TokenLoss(), sk.RoleShare(queries="answer")], batch_size=1)
    own = reading["token_loss"].where(reading["token_role"].shift(key=-1).values == "answer")
    for which in range(2):
        inputs = prompts.batch([which]).inputs
        labels = inputs["input_ids"].where(torch.from_numpy(prompts.roles[which] == ROLE_INDEX["answer"]), -100)
        expected = made.model(**inputs, labels=labels).loss
        assert float(own[which].mean()) == pytest.approx(float(expected), abs=1e-5)
        assert int(own[which].notnull().sum()) == int((prompts.roles[which] == ROLE_INDEX["answer"]).sum())
    assert float(reading["role_share"].sel(role="answer").min()) > 0


def test_an_answer_that_the_tokenizer_rewrites_is_refused():
    model = vlm("llava")
    original = model.processor
    model.processor = Shouting(original)
    with pytest.raises(
        PromptError, match=r"prompt 0: the tokenizer rewrites the answer 'cat', so its tokens cannot be"
    ):
        Prompts.from_chat([{"text": "What?", "answer": "cat"}], model)


class Shouting:
    def __init__(self, processor):
        self._processor = processor

    def __call__(self, text, **given):
        return self._processor(text=text.replace("cat", "CAT"), **given)

    def __getattr__(self, name):
        return getattr(self._processor, name)


def test_files_and_pictures_give_the_same_prompt(tmp_path):
    picture = image(64, 48)
    picture.save(tmp_path / "a.png")
    model = vlm("internvl")
    digests = {
        Prompts.from_chat([{"image": source, "text": "What?"}], model).digest
        for source in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), [picture])
    }
    assert len(digests) == 1


def test_odd_modes_reach_the_processor_as_rgb():
    model = vlm("llava")
    grey = Image.fromarray(np.full((48, 64), 40000, dtype=np.uint16))
    prompts = Prompts.from_chat([{"image": grey, "text": "a"}, {"image": image(9, 9).convert("P"), "text": "a"}], model)
    assert prompts.batch([0, 1]).inputs["pixel_values"].shape == (2, 3, 16, 16)


BAD = [
    ([], "the list of questions is empty"),
    ({"text": "a"}, "expected a list of questions, got one dict. Wrap it in a list"),
    (["a"], "prompt 0: expected a mapping with 'text'.*got str"),
    ([{"image": "a.png"}], r"got \['image'\]"),
    ([{"text": "a", "images": []}], r"got \['images', 'text'\]"),
    ([{"text": ""}], "prompt 0: 'text' must be a text of at least one character"),
    ([{"text": "a", "answer": " "}], "prompt 0: 'answer' must be a text that is not blank"),
    ([{"text": "a", "answer": 3}], "prompt 0: 'answer' must be a text that is not blank"),
    ([{"text": "a", "system": 3}], "'system' must be a text, got int"),
    ([{"text": "a"}, {"text": "a", "image": ["/nowhere/x.png", 4]}], r"prompt 1, image 0 \(/nowhere/x.png\): no such"),
    ([{"text": "<image> a", "image": Image.new("RGB", (8, 8))}], "1 images but 2 placeholders '<image>' in its text"),
    ([{"text": "a <image>"}], "0 images but 1 placeholders"),
]


@pytest.mark.parametrize(("items", "message"), BAD)
def test_bad_questions(items, message):
    with pytest.raises(PromptError, match=message):
        Prompts.from_chat(items, vlm("llava"))


def test_wrong_kind_of_model():
    item = [{"text": "a"}]
    with pytest.raises(PromptError, match=r"is a vision encoder and reads no text. Use Prompts\.from_images"):
        Prompts.from_chat(item, SimpleNamespace(kind="vision", config=None))
    with pytest.raises(PromptError, match=r"is a text decoder and takes no images. Use Prompts\.from_texts"):
        Prompts.from_chat(item, SimpleNamespace(kind="decoder", config=None))
    with pytest.raises(PromptError, match=r"no processor of text and images\. Pass one to load_model"):
        Prompts.from_chat(item, SimpleNamespace(kind="vlm", config=None, processor=None))


def test_a_prompt_beyond_the_context_names_both_lengths():
    model = vlm("idefics3")
    model.context_length = 20
    with pytest.raises(PromptError, match=r"prompt 0 has \d+ tokens, but this model's context length is 20"):
        Prompts.from_chat([{"image": image(64, 48), "text": "What?"}], model)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_processor_output_is_run_whole(family, side):
    model = vlm(family)
    placeholder = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}]}], tokenize=False
    )
    made = model.processor(
        images=[[image(64, 48)], [image(48, 64)]],
        text=[placeholder, placeholder + " What color is the square?"],
        return_tensors="pt", padding=True, padding_side=side,
    )  # fmt: skip
    prompts = Prompts.from_inputs(made, model)
    assert prompts.whole is not None
    batch = prompts.batch([0, 1])
    mask = made["attention_mask"] != 0
    torch.testing.assert_close(batch.real, mask)
    assert not mask.all()
    visual = (made["input_ids"] == model.config.image_token_id) & mask
    for row in range(2):
        assert prompts.lengths[row] == int(mask[row].sum())
        assert ROLES[prompts.roles[row][0]] == "bos"
        found = np.isin(prompts.roles[row], [ROLE_INDEX["image"], ROLE_INDEX["special"]])
        assert found[visual[row][mask[row]].numpy()].all()
    assert model.model(**batch.inputs).logits.isfinite().all()


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "gemma3"])
def test_grid_of_processor_output(family):
    model = vlm(family)
    items = [{"image": [image(64, 48)], "text": "What?"}]
    asked = Prompts.from_chat(items, model)
    whole = Prompts.from_inputs({**asked.batch([0]).inputs}, model)
    for name in ("row", "col", "tile", "image"):
        np.testing.assert_array_equal(getattr(whole.grids[0], name), getattr(asked.grids[0], name))
    known = family == "llava_next"  # the others do not say how large the image was
    assert np.isnan(whole.grids[0].box).all() != known
    np.testing.assert_array_equal(whole.roles[0] == ROLE_INDEX["image"], asked.roles[0] == ROLE_INDEX["image"])


def test_grids_are_left_out_where_images_cannot_be_told_apart():
    model = vlm("qwen2_vl")
    asked = Prompts.from_chat([{"image": image(64, 48), "text": "What?"}], model)
    inputs = dict(asked.batch([0]).inputs)
    inputs["image_grid_thw"] = inputs["image_grid_thw"].repeat(2, 1)
    assert Prompts.from_inputs(inputs, model).grids == (None,)


def test_clip_output_is_run_whole():
    network = tiny("clip")
    model = SimpleNamespace(
        model=network, config=network.config, tokenizer=None, processor=None, kind="encoder", context_length=64
    )
    inputs = {"input_ids": torch.tensor([[1, 5, 2], [1, 6, 2]]), "pixel_values": torch.randn(2, 3, 16, 16)}
    prompts = Prompts.from_inputs(inputs, model)
    assert prompts.lengths == (3, 3)
    assert set(prompts.batch([0, 1]).inputs) == {"input_ids", "pixel_values"}


def test_what_the_processor_refuses_is_told():
    with pytest.raises(PromptError, match=r"prompt 0: Qwen2VLProcessor refuses this prompt \(.*aspect ratio"):
        Prompts.from_chat([{"image": image(900, 2), "text": "What?"}], vlm("qwen2_vl"))
