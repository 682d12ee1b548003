"""The vision part inside a larger model, as a tower of its own.

It is found when it is first asked for, by running its module alone on the smallest picture that reaches every layer.
Qwen towers call attention several times in a layer (one window or image each); the calls follow one another along the
tokens, so each gets the part of the masks, roles and edits that is its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.call import Call
from sinkscope.attention.view import Context, Wants
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, Tower
from sinkscope.models.backends.discovery import explore, find_vision_root
from sinkscope.models.backends.pictures import trial_picture

NAME = "vision"


class Towers(Mapping[str, Tower]):
    """Towers by name; the vision part of a larger model is there from the start and found when first looked up."""

    def __init__(self, model: torch.nn.Module, found: Mapping[str, Tower]) -> None:
        self.model, self.found = model, dict(found)
        self.root = vision_root(model) if found and NAME not in found else None

    def __getitem__(self, name: str) -> Tower:
        """Give the tower.

        Raises:
            KeyError: there is no such tower.
            UnsupportedModelError: the vision part bypasses the attention interface.
        """
        if name == NAME and name not in self.found and self.root is not None:
            self.found[name] = discover_vision(self.model, self.root)
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.found, *([NAME] if self.root is not None and NAME not in self.found else [])])

    def __len__(self) -> int:
        return len(list(iter(self)))


def vision_root(model: torch.nn.Module) -> str | None:
    """Path of the vision part inside a larger model; None for a model that is a vision encoder itself."""
    config: Any = getattr(model, "config", None)
    return None if getattr(config, "vision_config", None) is None else find_vision_root(model)


def discover_vision(model: torch.nn.Module, root: str) -> Tower:
    """Find the layers and residual sites of the vision part at ``root``.

    Raises:
        UnsupportedModelError: its attention bypasses the library's interface.
    """
    module = model.get_submodule(root)
    try:
        missing = sorted(_needed(module) - set(trial_picture(module)))
        if missing:
            raise _MoreNeededError(missing)
        return explore(model, NAME, lambda: module(**trial_picture(module)))
    except _MoreNeededError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__}, the vision part of this model, takes {', '.join(error.args[0])} beside its "
            "pictures, so it cannot be read alone. Read the language part (leave tower= out)."
        ) from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__}, the vision part of this model, cannot be read alone. {error}"
        ) from None
    except Exception as error:  # whatever a module of unknown make raises
        raise UnsupportedModelError(
            f"{type(module).__name__}, the vision part of this model, cannot be read alone ({type(error).__name__}: "
            f"{str(error)[:120]}). Read the language part (leave tower= out), or load the vision part by itself."
        ) from None


class _MoreNeededError(Exception):
    """Names of inputs that a vision part wants beside its pictures."""


def _needed(module: torch.nn.Module) -> set[str]:
    """Names of what the forward pass of a vision part cannot do without."""
    named = inspect.signature(module.forward).parameters.items()
    return {n for n, p in named if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def rows_of(inputs: Mapping[str, torch.Tensor]) -> int:
    """Batch rows of the hidden states that ``inputs`` make; a Qwen tower has one, whose tokens are all patches."""
    if "grid_thw" in inputs:
        return 1
    return len(inputs["input_ids"] if "input_ids" in inputs else next(iter(inputs.values())))


class Portions:
    """Cuts what holds for all tokens of a picture down to those of one attention call.

    Wraps a session whose tower may call attention several times in a layer; calls that cover all tokens pass through.
    """

    def __init__(self, session: seam.Session, site_of: Callable[[torch.nn.Module], AttentionSite | None]) -> None:
        self.session, self.site_of = session, site_of
        self.context = session.context
        self._wants, self._edits = session.wants, session.edits
        self.done: dict[AttentionSite, int] = {}
        self.start = self.length = 0
        session.observe, session.wants, session.edits = self.observe, self.wants, self.edits

    def observe(self, module: torch.nn.Module, call: Call) -> None:
        """Note where the tokens of this call start, before anything is asked of it."""
        site = self.site_of(module)
        if site is None:
            return
        self.start, self.length = self.done.get(site, 0), call.key.shape[2]
        self.done[site] = self.start + self.length
        whole = self.context
        if whole is not None:
            self.session.context = Context(self._cut(whole.real), self._cut(whole.roles), whole.role_list)

    def wants(self, module: torch.nn.Module) -> Wants:
        """Return what is wanted of this call's keys."""
        return self._wants(module).cut(self._cut)

    def edits(self, module: torch.nn.Module, call: Call) -> Any:
        """Return what is changed in this call: its mask says where its tokens stand."""
        if self.start == 0:
            return self._edits(module, call)
        mask = replace(call.mask, q_offset=call.mask.q_offset + self.start, kv_offset=call.mask.kv_offset + self.start)
        return self._edits(module, replace(call, mask=mask))

    def _cut(self, mask: torch.Tensor) -> torch.Tensor:
        return mask[:, self.start : self.start + self.length]
