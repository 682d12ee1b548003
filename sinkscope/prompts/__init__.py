"""Prompts: token ids with roles, further model inputs, and for images the patch grid.

``data`` holds the fields; ``text``, ``chat``, ``inputs``, ``images`` and ``towers`` build them; ``prompts`` puts the
constructors on top; ``batch`` collates; ``selection`` is the language of ``keys=`` and ``queries=``; ``labels`` gives
tokens names of the user's own.
"""

from sinkscope.prompts.data import PAD, Batch
from sinkscope.prompts.labels import label_tokens
from sinkscope.prompts.prompts import Prompts

__all__ = ["PAD", "Batch", "Prompts", "label_tokens"]
