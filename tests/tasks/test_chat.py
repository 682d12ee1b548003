import dataclasses

import pytest

import sinkscope as sk
from sinkscope import tasks
from sinkscope.errors import PromptError

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def model():
    """The small language model, with a template of ours for as long as a test runs."""
    made = sk.load_model("zoo:lm-python")
    made.tokenizer.chat_template = CHATML
    return made


def test_questions_are_put_through_the_template(model):
    task = tasks.english("sentiment", calibration=2, test=3)
    put = tasks.in_chat(task, model)
    for plain, item in zip(task.test, put.test, strict=True):
        assert item.prompt.endswith(f"user\n{plain.prompt}\n<s>assistant\n")
        assert item.options == tuple(option.strip() for option in plain.options)
        assert (item.answer, item.focus) == (plain.answer, plain.focus)
    assert put.source.endswith("through the chat template")
    focus = tasks.Questions.of(put.test, model).focus(model)
    assert focus.any("key").all()


def test_an_option_has_a_blank_where_the_template_ends_in_none(model):
    model.tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant:{% endif")
    assert tasks.in_chat(tasks.english("sentiment", calibration=1, test=1), model).test[0].options == (" Hate", " Love")


def test_there_is_one_first_token(model):
    """The template writes the first token that the tokenizer puts in front as well."""
    put = tasks.in_chat(tasks.english("sentiment", calibration=1, test=1), model)
    ids = tasks.Questions.of(put.test, model).prompts.ids[0]
    first = model.tokenizer.bos_token_id
    assert ids[0] == first
    assert ids[1] != first


def test_examples_are_turns_of_the_same_chat(model):
    task = tasks.english("inference", calibration=2, test=2)
    example = dataclasses.replace(task.test[0], prompt="Tom has a red hat. Does Tom have a hat?", focus="")
    put = tasks.in_chat(task, model, [example])
    answer = example.options[example.answer].strip()
    assert f"user\n{example.prompt}\n<s>assistant\n{answer}\n<s>user\n" in put.test[0].prompt
    with pytest.raises(PromptError, match="an example is one of the task's questions"):
        tasks.in_chat(task, model, [task.test[1]])


def test_what_cannot_be_put_is_refused(model):
    task = tasks.english("sentiment", calibration=1, test=1)
    model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(PromptError, match=r"the chat template refuses these turns \(no\)"):
        tasks.in_chat(task, model)
    model.tokenizer.chat_template = None
    with pytest.raises(PromptError, match=r"has no chat template\. Ask the task as it is"):
        tasks.in_chat(task, model)
