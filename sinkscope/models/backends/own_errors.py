"""What a network's own forward says against its inputs, told as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from sinkscope.errors import PromptError

_NETWORK = ("transformers.", "transformers_modules.", "torch.nn.modules.module")
"""Where a forward of transformers, of code beside a checkpoint, or the call of one stands."""


@contextmanager
def inputs_told(network: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Turn a TypeError or ValueError of the network's own code into a sentence that names what it was given.

    A probe or an edit that raises inside a hook is left alone, since that is no fault of the inputs.

    Raises:
        PromptError: the network's forward refuses the inputs, as BLIP for questions does without the answer's tokens.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if not _of_the_network(error):
            raise
        raise PromptError(
            f"{type(network).__name__} does not run on {', '.join(inputs)}: {error}. Prompts.from_inputs takes "
            "whatever its forward asks for, beside what the processor gives."
        ) from error


def _of_the_network(error: Exception) -> bool:
    """Whether an error was raised in the code of the network, with nothing of anybody else's in between."""
    names: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    first = next((at for at, name in enumerate(names) if name.startswith(_NETWORK)), None)
    within = names[first:] if first is not None else []
    return bool(within) and all(name.startswith((*_NETWORK, "torch.", "contextlib")) for name in within)
