"""Questions as an instruction-tuned model is asked them: through the chat template of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from sinkscope.errors import PromptError
from sinkscope.tasks.base import Item, Task

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


def in_chat(task: Task, model: Model, examples: Sequence[Item] = ()) -> Task:
    """Return the task with each question put as the user's turn and answered in the model's.

    An option follows what the template writes before an answer, with a blank in front where that ends in none.

    Args:
        task: questions without a template.
        model: whose tokenizer has a chat template.
        examples: answered questions that are said before each one, as turns of the same chat (few-shot).

    Raises:
        PromptError: no chat template, one that refuses these turns, or an example that is one of the questions.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(f"in_chat: the tokenizer of {model.id} has no chat template. Ask the task as it is.")
    asked = {item.prompt for item in (*task.calibration, *task.test)}
    if any(item.prompt in asked for item in examples):
        raise PromptError("in_chat: an example is one of the task's questions. Take examples from elsewhere.")
    said = [turn for item in examples for turn in (_user(item), _answered(item))]
    parts = [[_put(item, said, tokenizer) for item in part] for part in (task.calibration, task.test)]
    return Task(task.name, tuple(parts[0]), tuple(parts[1]), f"{task.source}, through the chat template")


def _put(item: Item, said: list[dict[str, str]], tokenizer: Any) -> Item:
    try:
        text = str(tokenizer.apply_chat_template([*said, _user(item)], tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as error:
        raise PromptError(f"in_chat: the chat template refuses these turns ({error}). Ask without examples.") from None
    # The tokenizer puts its own first token in front: a template that writes it would give two.
    first = tokenizer.bos_token
    if first and text.startswith(first) and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(first)
    blank = "" if text[-1:].isspace() else " "
    return Item(text, tuple(blank + option.strip() for option in item.options), item.answer, item.focus)


def _user(item: Item) -> dict[str, str]:
    return {"role": "user", "content": item.prompt}


def _answered(item: Item) -> dict[str, str]:
    return {"role": "assistant", "content": item.options[item.answer].strip()}
