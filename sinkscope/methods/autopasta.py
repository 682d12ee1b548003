"""AutoPASTA: the model itself says which sentence matters, and attention is turned to it.

Zhang et al. 2024 (arXiv 2409.10790). The model is asked for the key sentence of each prompt, its answer is matched to
the closest sentence that is really there, and PASTA steers to that one. Heads are searched from layers on down.
Here sentences are matched by their longest common blocks of characters (the paper matches sentence embeddings), and the
question is asked in this project's own words.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sinkscope.edits.keys import SteerKeys
from sinkscope.engine.generation import generate, written_texts
from sinkscope.methods.zerotuning import ZeroTuningSettings
from sinkscope.methods.zerotuning_compare import BaselineSettings, pasta
from sinkscope.prompts import Prompts
from sinkscope.registry import method
from sinkscope.tasks import Item, Questions, Task, in_chat

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

REQUEST = "\n\nCopy the one sentence of this text that is needed for the answer."
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, as they stand in it."""
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip()]


def auto_focus(model: Model, task: Task, *, max_new_tokens: int = 24, batch_size: int = 8) -> Task:
    """Return the task with the sentence that the model names as the focus of each question, whatever it was before.

    Questions are put through the chat template where the tokenizer has one. The focus is the sentence of the prompt
    closest to what the model writes (``difflib``'s ratio; of equal ones the first), so that there always is one.

    Args:
        model: a decoder with a tokenizer.
        task: questions without a template; see :func:`sinkscope.tasks.in_chat`.
        max_new_tokens: of what the model writes.
        batch_size: prompts per pass.
    """
    parts = [_asked(model, part, max_new_tokens, batch_size) for part in (task.calibration, task.test)]
    return Task(task.name, parts[0], parts[1], task.source)


def _asked(model: Model, items: Sequence[Item], count: int, batch_size: int) -> tuple[Item, ...]:
    put = tuple(dataclasses.replace(item, prompt=item.prompt + REQUEST) for item in items)
    if getattr(model.tokenizer, "chat_template", None):
        put = in_chat(Task("key sentence", put, (Item("-", ("a", "b"), 0),)), model).calibration
    prompts = Prompts.from_texts([item.prompt for item in put], model)
    written = generate(model, prompts, max_new_tokens=count, batch_size=batch_size)
    said = zip(items, written_texts(model, written), strict=True)
    return tuple(dataclasses.replace(item, focus=closest(text, sentences(item.prompt))) for item, text in said)


def closest(said: str, among: Sequence[str]) -> str:
    """Return the sentence of ``among`` closest to what was said."""
    return max(among, key=lambda sentence: difflib.SequenceMatcher(None, said.strip(), sentence).ratio())


@method()
def autopasta(
    model: Model, task: Task, settings: ZeroTuningSettings | None = None, fixed: BaselineSettings | None = None
) -> tuple[Callable[[Questions], SteerKeys], Task]:
    """PASTA towards the sentence that the model names, in heads found coarse to fine on ``task.calibration``.

    Returns what :func:`sinkscope.methods.zerotuning_compare.pasta` does, and the task with the model's own focus, whose
    test questions the edit is for. A tokenizer with a chat template is asked through it, in both.

    Args:
        model: a decoder with a tokenizer.
        task: questions without a template.
        settings: as in :func:`sinkscope.methods.zerotuning.zerotune`.
        fixed: as in ``pasta``; ``search`` is ``"layers"`` here.
    """
    focused = auto_focus(model, task)
    if getattr(model.tokenizer, "chat_template", None):
        focused = in_chat(focused, model)
    values = dataclasses.replace(fixed or BaselineSettings(), search="layers")
    return pasta(model, focused, settings, values), focused
