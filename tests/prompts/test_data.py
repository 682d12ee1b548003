"""Prompts from texts, ids and processor output: roles, strings, batches, digests, errors."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from vlm_models import image, vlm
from vlm_models import tokenizer as byte_level_tokenizer

from sinkscope.errors import PromptError, printable
from sinkscope.prompts import Prompts
from sinkscope.prompts.vocabulary import role_of_text
from sinkscope.roles import ROLE_INDEX, ROLES
from sinkscope.testing import tiny

NASTY = ["<script>alert(1)</script>", "a\nb\tc", "\0nul", "\u200fright\u202eto left", "\U0001f600 smile", "\x1b[31mred"]


def handle(network, tokenizer=None, kind="decoder", context=256):
    return SimpleNamespace(
        model=network, config=network.config, tokenizer=tokenizer, processor=None, kind=kind, context_length=context
    )


def llama(**overrides):
    return handle(tiny("llama", vocab_size=512, bos_token_id=0, **overrides), byte_level_tokenizer())


def wordpiece():
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    core.train_from_iterator(["the sitting cat sat, sitting on the mat."] * 5, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", **names)


def sentencepiece_like(**names):
    pieces = ["<unk>", "<0x0A>", "<0xC3>", "<0xA9>", "\u2581", *"thecas.", "th", "the", "\u2581the", "at", "cat"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("a", "t"), ("c", "at"), ("\u2581", "cat")]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "\u2581cat"])}
    core = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **names)


def named(prompts, which=0):
    return [ROLES[r] for r in prompts.roles[which]]


def test_roles_and_tokens_of_a_text():
    prompts = Prompts.from_texts(["the cat sat. \n\n, </s>"], llama())
    tokens, roles = prompts.tokens[0], named(prompts)
    assert (tokens[0], roles[0]) == ("<s>", "bos")
    by_token = dict(zip(tokens, roles, strict=True))
    assert by_token[" cat"] == "text"
    assert by_token["."] == "punctuation"
    assert by_token["\\n"] == "newline"
    assert by_token["</s>"] == "special"
    assert prompts.key0 == "bos '<s>'"
    assert prompts.ids[0].dtype == np.int64
    assert prompts.roles[0].dtype == np.int8


def test_a_bos_later_in_the_text_is_special():
    prompts = Prompts.from_texts(["the<s> cat"], llama())
    assert named(prompts).count("bos") == 1
    assert named(prompts)[prompts.tokens[0].index("<s>", 1)] == "special"


def test_an_encoder_starts_with_cls_and_ends_with_sep():
    model = handle(tiny("bert"), wordpiece(), kind="encoder")
    prompts = Prompts.from_texts(["The sitting cat, sat."], model)
    assert prompts.tokens[0][0] == "[CLS]"
    assert prompts.tokens[0][-1] == "[SEP]"
    assert named(prompts)[0] == "bos"
    assert named(prompts)[-1] == "special"
    assert named(prompts).count("punctuation") == 2
    assert prompts.key0 == "bos '[CLS]'"


def test_sentencepiece_pieces_and_byte_fallback():
    tokenizer = sentencepiece_like()
    model = handle(tiny("llama", bos_token_id=None), tokenizer)
    prompts = Prompts.from_texts(["the cat\n"], model)
    assert prompts.tokens[0][0] == " the"
    assert prompts.tokens[0][-1] == "\\n"
    assert named(prompts)[-1] == "newline"
    assert prompts.key0 == "content token ' the' (the tokenizer adds no BOS)"
    accent = Prompts.from_ids([[2, 3]], model)
    assert accent.tokens[0] == ("\\xc3", "\\xa9")
    assert named(accent) == ["text", "text"]


@pytest.mark.parametrize(
    ("text", "role"),
    [
        (" .", "punctuation"), ("...", "punctuation"), (".\n", "punctuation"), ("\u3002", "punctuation"),
        ("$", "punctuation"), ("\n", "newline"), (" \r\n ", "newline"), ("\u2028", "newline"), ("  ", "text"),
        ("\t", "text"), ("a.", "text"), ("\U0001f600", "text"), ("", "text"), ("7", "text"),
    ],
)  # fmt: skip
def test_role_of_text(text, role):
    assert role_of_text(text) == role


@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_printable_never_breaks_a_terminal(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@pytest.mark.parametrize("text", NASTY)
def test_nasty_texts_are_safe_to_print(text):
    prompts = Prompts.from_texts([text], llama())
    assert all(token.isprintable() and token for token in prompts.tokens[0])
    page = prompts._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in repr(prompts)
    assert repr(prompts).count("\n") == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4))
def test_batches_hold_the_prompts(texts):
    prompts = Prompts.from_texts(texts, llama())
    batch = prompts.batch(range(len(texts)))
    for row, index in enumerate(batch.indices):
        keep = batch.real[row]
        np.testing.assert_array_equal(batch.inputs["input_ids"][row][keep].numpy(), prompts.ids[index])
        np.testing.assert_array_equal(batch.roles[row][keep].numpy(), prompts.roles[index])
        assert (batch.roles[row][~keep] == ROLE_INDEX["pad"]).all()
    assert ("attention_mask" in batch.inputs) == (not bool(batch.real.all()))


def test_batch_is_padded_on_the_right_only_if_needed():
    prompts = Prompts.from_ids([[0, 5, 6], [0, 7], [0, 8, 9]], llama())
    mixed = prompts.batch([1, 0])
    pad = byte_level_tokenizer().pad_token_id
    assert mixed.inputs["input_ids"].tolist() == [[0, 7, pad], [0, 5, 6]]
    assert mixed.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert mixed.indices == (1, 0)
    assert set(prompts.batch([0, 2]).inputs) == {"input_ids"}


def test_bos_policies():
    model = llama()
    auto = Prompts.from_texts(["the cat"], model).ids[0]
    with_bos = Prompts.from_texts(["the cat"], model, add_bos=True).ids[0]
    bare = Prompts.from_texts(["the cat"], model, add_bos=False)
    np.testing.assert_array_equal(auto, with_bos)
    np.testing.assert_array_equal(auto[1:], bare.ids[0])
    assert bare.key0 == "content token 'the' (no BOS, though the model knows '<s>')"
    encoder = handle(tiny("bert"), wordpiece(), kind="encoder")
    without = Prompts.from_texts(["the cat"], encoder, add_bos=False)
    assert without.tokens[0][0] == "the"
    assert without.tokens[0][-1] == "[SEP]"


def test_bos_is_put_in_front_where_the_tokenizer_adds_none():
    tokenizer = sentencepiece_like(bos_token="<s>")
    model = handle(tiny("llama"), tokenizer)
    assert tokenizer("the")["input_ids"][0] != tokenizer.bos_token_id
    prompts = Prompts.from_texts(["the", "cat"], model, add_bos=True)
    assert {int(ids[0]) for ids in prompts.ids} == {tokenizer.bos_token_id}
    assert prompts.key0 == "bos '<s>'"
    both = Prompts.from_ids([prompts.ids[0], prompts.ids[1][1:]], model)
    assert both.key0.startswith("bos in 1 of 2 prompts, a content token in the others")


def test_without_a_tokenizer_the_config_names_the_bos():
    model = handle(tiny("llama"))
    prompts = Prompts.from_ids([[1, 7, 2], [1, 8]], model)
    assert named(prompts) == ["bos", "text", "special"]
    assert prompts.tokens[0] == ("#1", "#7", "#2")
    assert prompts.key0 == "bos #1"
    assert Prompts.from_ids([[7, 8], [9]], model).key0 == (
        "content token, 2 different ones (no BOS, though the model knows #1)"
    )


def test_digest_lengths_and_subset():
    model = llama()
    prompts = Prompts.from_ids([[0, 5, 6], [0, 7], [0, 8, 9]], model)
    assert prompts.lengths == (3, 2, 3)
    assert len(prompts) == 3
    assert re.fullmatch("[0-9a-f]{64}", prompts.digest)
    assert Prompts.from_ids([[0, 5, 6], [0, 7], [0, 8, 9]], model).digest == prompts.digest
    assert Prompts.from_ids([[0, 5, 6, 0], [7], [0, 8, 9]], model).digest != prompts.digest
    part = prompts.subset([2, 0])
    assert [i.tolist() for i in part.ids] == [[0, 8, 9], [0, 5, 6]]
    assert part.digest != prompts.digest
    assert part.subset([1, 0]).digest == prompts.subset([0, 2]).digest


def test_the_batch_size_rule():
    prompts = Prompts.from_ids([[0, 5, 6], [0, 7], [0, 8, 9]], llama())
    assert prompts.spans(2) == [range(0, 2), range(2, 3)]
    assert prompts.spans(np.int64(9)) == [range(0, 3)]
    for size in (0, -1, 1.5, True, "2"):
        with pytest.raises(PromptError, match=rf"batch_size={size!r}: use a whole number of at least 1"):
            prompts.spans(size)


def test_numpy_and_tensor_ids_are_taken():
    model = llama()
    prompts = Prompts.from_ids([np.array([0, 5]), torch.tensor([0, 5]), (0, 5)], model)
    assert len({p.tobytes() for p in prompts.ids}) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_inputs_are_taken_apart_whichever_side_was_padded(side):
    model = llama()
    tokenizer = byte_level_tokenizer()
    texts = ["the cat sat.", "a", "What color is the square?"]
    padded = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    taken, plain = Prompts.from_inputs(padded, model), Prompts.from_texts(texts, model)
    assert taken.whole is None
    assert taken.digest == plain.digest
    assert taken.tokens == plain.tokens
    np.testing.assert_array_equal(taken.batch([0, 1]).inputs["input_ids"], plain.batch([0, 1]).inputs["input_ids"])


def test_token_types_travel_with_their_tokens():
    model = handle(tiny("bert"), wordpiece(), kind="encoder")
    given_inputs = {
        "input_ids": torch.tensor([[0, 0, 2, 7, 3], [2, 8, 9, 10, 3]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]),
    }
    prompts = Prompts.from_inputs(given_inputs, model)
    batch = prompts.batch([0, 1])
    assert batch.inputs["input_ids"].tolist() == [[2, 7, 3, 0, 0], [2, 8, 9, 10, 3]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    model.model(**batch.inputs)


def test_positions_make_inputs_whole():
    model = handle(tiny("llama"))
    given_inputs = {
        "input_ids": torch.tensor([[0, 1, 5], [1, 6, 7]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 1], [0, 1, 2]]),
    }
    prompts = Prompts.from_inputs(given_inputs, model)
    assert prompts.lengths == (2, 3)
    assert named(prompts)[0] == "bos"
    batch = prompts.batch([0, 1])
    assert batch.real.tolist() == [[False, True, True], [True, True, True]]
    assert batch.roles[0, 0] == ROLE_INDEX["pad"]
    torch.testing.assert_close(batch.inputs["position_ids"], given_inputs["position_ids"])
    assert prompts.subset([0, 1]).digest == prompts.digest
    assert prompts.spans(1) == [range(0, 2)]
    with pytest.raises(PromptError, match=r"run whole.*batch_size=2"):
        prompts.batch([0])
    with pytest.raises(PromptError, match="run whole"):
        prompts.subset([1])


BAD_TEXTS = [
    ([], "the list of texts is empty"),
    ("the cat", r"expected a list of texts, got one str. Wrap it in a list"),
    ([""], "prompt 0 is an empty text"),
    (["a", 7], "prompt 1: expected a text, got int 7. Use from_ids"),
    (["the cat " * 300], r"prompt 0 has \d+ tokens, but this model's context length is 256"),
]


@pytest.mark.parametrize(("texts", "message"), BAD_TEXTS)
def test_bad_texts(texts, message):
    with pytest.raises(PromptError, match=message):
        Prompts.from_texts(texts, llama())


BAD_IDS = [
    ([], "the list of id lists is empty"),
    ([[]], "prompt 0 is empty: it has no tokens"),
    ([[1, 2], [600]], r"prompt 1: token id 600 is outside the vocabulary of 512 \(ids 0 to 511\)"),
    ([[-1]], "token id -1 is outside the vocabulary"),
    ([[0] * 257], "prompt 0 has 257 tokens, but this model's context length is 256"),
    ([1, 2], "expected a flat list of token ids"),
    ([[0.5]], "expected a flat list of token ids"),
    (["ab"], "Use from_texts for text"),
    ([[[1]]], "expected a flat list of token ids"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS)
def test_bad_ids(ids, message):
    with pytest.raises(PromptError, match=message):
        Prompts.from_ids(ids, llama())


def test_bad_policy_and_missing_bos():
    with pytest.raises(PromptError, match=r"add_bos='yes'\): add_bos is 'auto', True or False"):
        Prompts.from_texts(["a"], llama(), add_bos="yes")
    model = handle(tiny("llama"), sentencepiece_like())
    with pytest.raises(PromptError, match="has no beginning-of-sequence token"):
        Prompts.from_texts(["the"], model, add_bos=True)


def test_wrong_kind_of_model():
    with pytest.raises(PromptError, match=r"no tokenizer. Pass one to load_model\(..., tokenizer=\), or use from_ids"):
        Prompts.from_texts(["a"], handle(tiny("llama")))
    vision = handle(tiny("vit"), kind="vision")
    for call, argument in (("from_texts", ["a"]), ("from_ids", [[1]])):
        with pytest.raises(PromptError, match=rf"{call}: this model is a vision encoder .* Use Prompts.from_images"):
            getattr(Prompts, call)(argument, vision)


def test_placeholders_without_an_image():
    model = vlm("llava")
    for prompts in (["<image> what?"], ["a", "<image>"]):
        with pytest.raises(PromptError, match=r"holds 1 image placeholder tokens but no image\. Use from_chat"):
            Prompts.from_texts(prompts, model)
    ids = torch.tensor([[0, model.config.image_token_id]])
    with pytest.raises(PromptError, match="prompt 0 holds 1 image placeholder tokens but there are no pixel_values"):
        Prompts.from_inputs({"input_ids": ids}, model)


IDS = torch.tensor([[0, 5, 6], [0, 7, 8]])
BAD_INPUTS = [
    ([1, 2], "expected what the model's processor or tokenizer returns, got list"),
    ({}, r"'input_ids' are missing, got \[\]"),
    ({"input_ids": [[1, 2], [3]]}, "'input_ids' is no rectangular tensor.*return_tensors='pt'"),
    ({"input_ids": IDS[0]}, r"input_ids have the shape \(prompt, token\), got torch.int64 of shape \(3,\)"),
    ({"input_ids": IDS.float()}, "got torch.float32"),
    (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
        r"attention_mask has shape \(2, 4\), but input_ids have \(2, 3\)",
    ),
    ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "row 1 is all padding"),
    ({"input_ids": IDS, "attention_mask": torch.full((2, 3), 0.5)}, "must hold only 0"),
    ({"input_ids": IDS + 510}, "outside the vocabulary"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS)
def test_bad_inputs(inputs, message):
    with pytest.raises(PromptError, match=message):
        Prompts.from_inputs(inputs, llama())


def test_bad_indices():
    prompts = Prompts.from_ids([[0, 5]], llama())
    with pytest.raises(PromptError, match="prompt 1 was asked for, but there are prompts 0 to 0"):
        prompts.batch([1])
    with pytest.raises(PromptError, match="no prompts chosen"):
        prompts.batch([])
    with pytest.raises(PromptError, match="prompt -1 was asked for"):
        prompts.subset([-1])


def test_html_is_coloured_and_cut():
    many = Prompts.from_ids(
        [[0, *range(20, 90)] * 6] * 12, handle(tiny("llama", max_position_embeddings=512), context=512)
    )
    page = many._repr_html_()
    assert "... 2 more prompts" in page
    assert "... 26 more" in page
    assert "title='text'" in page


def test_repr_of_images_shows_roles():
    prompts = Prompts.from_chat([{"image": image(64, 64), "text": "What?"}], vlm("llava"))
    assert "image 16" in repr(prompts)
