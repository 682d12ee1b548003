"""What a network's own forward says against its inputs, told as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from sinkscope.errors import PromptError

_NETWORK = ("transformers.", "transformers_modules.", "transformer_lens.", "torch.nn.modules.module")
"""Where a forward of transformers, of code beside a checkpoint, of a bridge, or the call of one stands."""
_AROUND = ("torch.", "contextlib", "peft.", "accelerate.", "jaxtyping.", "einops.")
"""What may stand between a network's forward and the operation that raised."""
_RAISED = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError)


@contextmanager
def inputs_told(network: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Turn an error of the network's own code into a sentence that names what it was given.

    A probe or an edit that raises inside a hook is left alone, since that is no fault of the inputs; so is a device
    without memory, which callers answer with smaller batches.

    Raises:
        PromptError: the network's forward refuses the inputs, as BLIP for questions does without the answer's tokens,
            or breaks over them: an index beyond a table of embeddings, positions of another length than the ids.
    """
    try:
        yield
    except _RAISED as error:
        if isinstance(error, torch.OutOfMemoryError) or not _of_the_network(error, network):
            raise
        kind = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
        given = ", ".join(_told(*each) for each in inputs.items())
        said = " ".join(str(error).split()).removesuffix(".")
        raise PromptError(
            f"{type(network).__name__} does not run on {given}: {kind}{said}. Compare with what its processor or "
            "tokenizer gives; Prompts.from_inputs takes whatever its forward asks for beside."
        ) from error


def _told(name: str, tensor: torch.Tensor) -> str:
    """Name an input with its shape, and with the least and the largest of its whole numbers."""
    span = ""
    if tensor.numel() and not tensor.is_meta and not (tensor.is_floating_point() or tensor.dtype == torch.bool):
        span = f" of {int(tensor.min())} to {int(tensor.max())}"
    return f"{name} {tuple(tensor.shape)}{span}"


def _of_the_network(error: BaseException, network: torch.nn.Module) -> bool:
    """Whether an error was raised in the code of the network, with nothing of anybody else's in between.

    The network's code is that of its modules' classes: a model may be written by the user, or be of another library.
    """
    names: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    own = {type(module).__module__ for module in network.modules()}
    first = next((at for at, name in enumerate(names) if name.startswith(_NETWORK) or name in own), None)
    within = names[first:] if first is not None else []
    return bool(within) and all(name.startswith((*_NETWORK, *_AROUND)) or name in own for name in within)
