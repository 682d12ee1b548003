"""Watching a model run once: which modules run inside which, what goes in and out of them, and who calls attention.

Everything else that is said about a model (:mod:`sinkscope.models.backends.discovery`) is read off this record, so
nothing depends on the names that an architecture gives to its parts, and a module that runs at several depths is seen
at each of them.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.attention.masks import is_windowed
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.facts import main_input

KEPT, HEAD = 1 << 22, 64
"""Numbers up to which a tensor is kept whole, and how many tokens are kept of a larger one (Mllama's four tiles).

Other large tensors (pictures in a convolution) are no residual stream of a trial.
"""


_BESIDE = ("bbox", "pixel_values", "pixel_values_videos", "decoder_input_ids", "input_features", "spatial_shapes")
"""Inputs that a model may want beside its main one, of which the trial makes none."""

PARTS = (
    "text_model", "text_encoder", "text_decoder", "image_model", "vision_model", "backbone", "text_backbone",
    "encoder_transformer", "decoder_transformer",
)  # fmt: skip
"""Names of parts that are models by themselves."""


@dataclass(eq=False)
class ModuleCall:
    """One run of one module: what it was given and made, how many tokens that had, and what ran inside.

    ``argument`` names the keyword that ``given`` came by, None where it stood first.
    """

    module: torch.nn.Module
    path: str
    number: int
    parent: ModuleCall | None
    tokens: int = 0
    argument: str | None = None
    given: torch.Tensor | None = None
    made: torch.Tensor | None = None
    inside: list[ModuleCall] = field(default_factory=list)

    @property
    def chain(self) -> list[ModuleCall]:
        """The runs that this one is part of, the model's own first, this one last."""
        return [self] if self.parent is None else [*self.parent.chain, self]


@dataclass(eq=False)
class Seen:
    """One attention call of the trial run; ``by`` is the run of the module that made it."""

    by: ModuleCall
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    causal: bool
    window: bool
    implicit_sink: bool
    full: bool
    keys: int
    batch: int = 1
    output: torch.nn.Module | None = None


@dataclass
class Record:
    """What was seen: attention calls in order, the outermost runs, and how often each module ran."""

    paths: Mapping[int, str]
    calls: list[Seen] = field(default_factory=list)
    outer: list[ModuleCall] = field(default_factory=list)
    runs: Counter[int] = field(default_factory=Counter)
    _open: list[ModuleCall] = field(default_factory=list)

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module starts."""
        argument, given = main_tensor(args, kwargs)
        parent = self._open[-1] if self._open else None
        tokens = 0 if given is None or given.ndim < 2 else given.shape[-2]
        entry = ModuleCall(
            module, self.paths[id(module)], self.runs[id(module)], parent, tokens, argument, _keep(given)
        )
        self.runs[id(module)] += 1
        (self.outer if parent is None else parent.inside).append(entry)
        self._open.append(entry)
        self._projection(module, given)

    def leave(self, module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> ModuleCall | None:
        """A module is done; one that raised has no output."""
        while self._open:
            entry = self._open.pop()
            if entry.module is module:
                entry.made = _keep(hidden_of(output))
                return entry
        return None

    def observe(self, module: torch.nn.Module, call: Call) -> None:
        """A module calls attention. Calls for one window or image after another inside one layer count as one."""
        by = next((entry for entry in reversed(self._open) if entry.module is module), None)
        if by is None:
            return
        mask, rows = call.mask, call.query.shape[2]
        last = self.calls[-1] if self.calls else None
        if last is not None and last.by is by and last.full and mask.kind == "full" and last.rows + rows <= by.tokens:
            last.rows, last.keys = last.rows + rows, last.keys + call.key.shape[2]
            return
        sink = call.sink_logits is not None or call.extra_key is not None or call.normaliser != "softmax"
        causal = mask.kind == "causal" or (mask.kind == "rule" and looks_back(call)) or _says_causal(module)
        self.calls.append(
            Seen(
                by, call.query.shape[1], call.key.shape[1], call.value.shape[-1], rows, causal, is_windowed(mask), sink,
                mask.kind == "full", call.key.shape[2], call.query.shape[0],
            )
        )  # fmt: skip

    def _projection(self, module: torch.nn.Module, given: torch.Tensor | None) -> None:
        """The first projection that reads an input of heads x width after a call is that call's W_O.

        One that reads what the calling module itself was given makes a gate from it.
        """
        if not self.calls or self.calls[-1].output is not None or given is None:
            return
        call = self.calls[-1]
        if not is_projection(module) or given.shape[-1] != call.heads * call.head_dim:
            return
        own = call.by.given
        if own is None or own.shape != given.shape or not torch.equal(own, given):
            call.output = module


def is_projection(module: torch.nn.Module) -> bool:
    """True for a linear layer under whatever name: plain, quantised, or wrapped by an adapter."""
    sized = all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))
    return sized or type(module).__name__ == "Conv1D"


def watch(model: torch.nn.Module, run: Callable[[], Any]) -> Record:
    """Run the model under the instrument and record what happens.

    Raises:
        UnsupportedModelError: no module calls the library's attention interface.
    """
    record = Record({id(module): path for path, module in model.named_modules()})
    try:
        with watched(model, record), torch.no_grad(), seam.entered(model, seam.Session(observe=record.observe)):
            run()
    except UnsupportedModelError:
        raise
    except Exception as error:
        if not record.calls:
            raise bypass(model, error) from None
        raise
    if not record.calls:
        raise bypass(model, None)
    return record


@contextmanager
def watched(
    model: torch.nn.Module, record: Record, made: Callable[[ModuleCall, Any], None] = lambda _entry, _output: None
) -> Iterator[None]:
    """While a model runs inside, note every run of a module in ``record``, and tell ``made`` what each gave."""

    def leave(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        entry = record.leave(module, args, output)
        if entry is not None:
            made(entry, output)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(record.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


NOTHING = "none of its modules is one of attention"
"""What is said of models without any."""


def parts_of(model: torch.nn.Module, base: bool = True) -> str:
    """Say, as a sentence, which parts of a model may be read by themselves; empty where there are none.

    ``base=False`` leaves out what is below a model's head, which attends as the whole does.
    """
    parts = [name for name, part in model.named_children() if name in PARTS and hasattr(part, "config")]
    below = str(getattr(model, "base_model_prefix", ""))
    if base and not parts and below and hasattr(getattr(model, below, None), "config"):
        parts = [below]
    told = ", ".join(f"load_model(model.{name})" for name in parts)
    return f" Its parts may be read by themselves: {told}." if told else ""


def bypass(model: torch.nn.Module, error: Exception | None) -> UnsupportedModelError:
    """The error for a model that calls no attention; ``error`` is what it raised instead."""
    hint = parts_of(model, base=error is not None)
    if error is not None:
        takes = set(inspect.signature(model.forward).parameters) - {main_input(model)}
        wanted = ", ".join(name for name in _BESIDE if name in takes)
        return UnsupportedModelError(
            f"{type(model).__name__}: the trial run ended in {type(error).__name__} ({_first_line(error)}) before any "
            "attention was reached. sinkscope tries the least that a model takes: one token, a blank image, or a short "
            f"recording{f'; this one also takes {wanted}' if wanted else ''}. A subclass whose forward fills in what "
            f"is missing can be read.{hint}"
        )
    own = next((n for m in model.modules() if re.search(r"att(n|en)", n := type(m).__name__, re.IGNORECASE)), None)
    if own is None:
        return UnsupportedModelError(f"{type(model).__name__}: {NOTHING}, so there is nothing to read or edit in it.")
    return UnsupportedModelError(
        f"{type(model).__name__}: running one token made no call to transformers' attention interface. The model "
        f"computes it by itself ({own}), or what mixes its tokens is no attention; use backend='lens' where "
        f"TransformerLens serves it, or a forward hook of your own on that module.{hint}"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else ""


def main_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, torch.Tensor | None]:
    """The tensor a module works on: its first argument, else ``hidden_states``, else the first of more than one axis.

    The name is None where it stands first.
    """
    if args and isinstance(args[0], torch.Tensor):
        return None, args[0]
    named = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor) and value.ndim > 1}
    named = {name: value for name, value in named.items() if value.is_floating_point()}
    name = "hidden_states" if "hidden_states" in named else next(iter(named), None)
    return (None, None) if name is None else (name, named[name])


def hidden_of(output: Any) -> torch.Tensor | None:
    """Return the tensor that a module gives: itself, or the first of what it gives."""
    if not isinstance(output, torch.Tensor):
        parts = list(output.values()) if isinstance(output, Mapping) else output
        output = parts[0] if isinstance(parts, tuple | list) and parts else None
    return output if isinstance(output, torch.Tensor) else None


def looks_back(call: Call) -> bool:
    """True where the library's rule hides a later key from an earlier query: a decoder's window."""
    rule = call.mask.rule
    zero = torch.zeros(1, dtype=torch.long, device=call.mask.device)
    if call.mask.use_vmap:
        return True
    try:
        return not bool(torch.as_tensor(rule(zero, zero, zero, zero + 1)).any())
    except IndexError:  # a mask that came as a tensor says nothing of tokens beyond the trial's
        return False


def _says_causal(module: torch.nn.Module) -> bool:
    return bool(getattr(module, "is_causal", False))


def _keep(tensor: torch.Tensor | None) -> torch.Tensor | None:
    # A copy: some blocks add to their input in place.
    if tensor is None or (tensor.numel() > KEPT and tensor.ndim != 3):
        return None
    return (tensor if tensor.numel() <= KEPT else tensor[:, :HEAD]).detach().clone()
