"""What prompts need to know of a model: a protocol, because this room stands below that of the models."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from sinkscope.errors import ModelError


class PromptModel(Protocol):
    """A model as prompts see it; ``sinkscope.models.handle.Model`` is one."""

    @property
    def kind(self) -> str:
        """``decoder``, ``encoder``, ``vision``, ``vlm``, ``encoder-decoder`` or ``audio``."""
        ...

    @property
    def model(self) -> torch.nn.Module:
        """The network; read for the size of its embedding, and run to its first block to count visual tokens."""
        ...

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer, or ``None``."""
        ...

    @property
    def processor(self) -> Any:
        """A transformers processor of text and images, for a vision encoder its image processor, or ``None``."""
        ...

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        ...

    @property
    def context_length(self) -> int | None:
        """Longest prompt in tokens, or ``None`` where nothing limits it."""
        ...


def source_name(network: torch.nn.Module) -> str:
    """Name of the input that a model is about; of an encoder-decoder that calls it ``inputs``, its encoder's."""
    whole: Any = network
    name = str(getattr(whole, "main_input_name", "input_ids"))
    return str(getattr(whole.get_encoder(), "main_input_name", name)) if name == "inputs" else name


def check_model(model: object, call: str) -> None:
    """Refuse what is no handle on a model, such as a model's name.

    Raises:
        ModelError: says what was given, and how to load a model.
    """
    if isinstance(model, type) or not (hasattr(model, "kind") and hasattr(model, "config")):
        given = f"the text {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
        raise ModelError(f"{call}: expected a model, got {given}. Load it first: model = sinkscope.load_model(...).")
