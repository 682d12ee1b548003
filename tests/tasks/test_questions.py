from functools import cache

import numpy as np
import pytest
from scipy.special import log_softmax

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ProbeError, PromptError
from sinkscope.tasks import Answers, Item, Questions

ITEMS = (
    Item("import os\nimport sys\nfor name in", (" names", " range", " sorted"), 1, "for name in"),
    Item("def read(self", (")", "]"), 0, "read"),
    Item("x", (" =", " in", " is"), 0, "x"),
)


@cache
def model():
    return sk.load_model("zoo:lm-python")


@cache
def questions():
    return Questions.of(ITEMS, model())


def test_options_are_the_tokens_that_follow_the_prompt():
    texts = [[questions().text_of(token) for token in ids] for ids in questions().options]
    for item, firsts in zip(ITEMS, texts, strict=True):
        assert all(option.startswith(first) and first for option, first in zip(item.options, firsts, strict=True))
    whole = model().tokenizer("x = 1")["input_ids"]
    assert questions().options[2][0] == whole[len(questions().prompts.ids[2])]
    assert questions().answers.tolist() == [1, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_probe_reads_the_last_token_of_each_prompt_however_padded(batch_size):
    prompts = questions().prompts
    assert len(set(prompts.lengths)) == 3
    reading = sk.run(model(), prompts, [questions().probe, sk.Logits()], batch_size=batch_size)
    logs = log_softmax(reading["logits"].values[:, 0].astype(np.float64), axis=-1)
    for row, ids in enumerate(questions().options):
        found = reading["log_probability_by_option"].values[row]
        np.testing.assert_allclose(found[: len(ids)], logs[row, list(ids)], atol=1e-4)
        assert np.isnan(found[len(ids) :]).all()
    assert reading["greedy_token"].values.tolist() == logs.argmax(-1).tolist()
    np.testing.assert_allclose(reading["answer_entropy"], -(np.exp(logs) * logs).sum(-1), atol=1e-4)


def test_a_subset_keeps_prompts_and_options_together():
    part = questions().subset([2, 0])
    assert part.items == (ITEMS[2], ITEMS[0])
    assert part.options == (questions().options[2], questions().options[0])
    assert part.prompts.ids[0].tolist() == questions().prompts.ids[2].tolist()


def test_which_option_a_generated_token_names():
    encode = model().tokenizer.get_vocab()
    asked = Questions.of([Item("Choose.\nAnswer:", (" A", " B", " a"), 0)], model())
    ids = asked.options[0]
    assert [asked.option_named(0, token) for token in ids] == [0, 1, 2]
    bare = encode["a"]
    assert bare not in ids
    assert asked.option_named(0, bare) == 0  # case is ignored, the first in list order wins
    starting = next(i for text, i in encode.items() if text.lower().lstrip("\u0120").startswith("as") and i not in ids)
    assert asked.option_named(0, starting) == 0
    assert asked.option_named(0, encode["z"]) is None
    assert asked.option_named(0, encode["\u0120"]) is None


def test_focus_covers_the_characters_it_names():
    focus = questions().focus(model())
    for row, item in enumerate(ITEMS):
        ids = questions().prompts.ids[row][focus.values[row, : questions().prompts.lengths[row]]]
        assert model().tokenizer.decode(ids).strip() == item.focus
    assert not focus.values[:, 0].any()
    with pytest.raises(PromptError, match=r"focus: question 0 names none\. Give its items a focus"):
        Questions.of([Item("x", (" =", " in"), 0)], model()).focus(model())


def test_a_random_token_is_one_and_never_the_first():
    found = questions().random_token(3)
    assert found.sum("key").values.tolist() == [1, 1, 1]
    assert (found.values.argmax(1) > 0).all()
    assert (found.values.argmax(1) < questions().prompts.lengths).all()
    assert any((questions().random_token(s).values != found.values).any() for s in range(4, 8))


def test_what_is_refused():
    with pytest.raises(PromptError, match=r"Questions\.of: no questions were given"):
        Questions.of([], model())
    words = r"options \[' qzzx', ' qzzy'\] of question 0 start with the same token in this tokenizer"
    with pytest.raises(PromptError, match=words):
        Questions.of([Item("x", (" qzzx", " qzzy"), 0)], model())
    encoder = sk.load_model(testing.tiny("bert"))
    with pytest.raises(ProbeError, match=r"Answers\(\): this model is an encoder and continues no prompt"):
        sk.run(encoder, sk.Prompts.from_ids([[1, 2]], encoder), [Answers(((1, 2),))])
