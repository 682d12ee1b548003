"""The tokenizer and the image processor that come with a checkpoint, if they do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES

from sinkscope.errors import ModelError
from sinkscope.models.weights import first_line, loading

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_tokenizer(name: str, local: bool) -> Any | None:
    """Load the tokenizer, or give ``None`` if the checkpoint has none.

    Raises:
        ModelError: there is one and it cannot be read.
    """
    if local and not _has(name, TOKENIZER_FILES):
        return None
    try:
        with loading():
            return AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # the tokenizer library raises bare Exception on a damaged file
        if not local:
            return None
        raise ModelError(
            f"load_model({name!r}): the tokenizer in this folder cannot be read ({first_line(error)}). Copy it again, "
            "or pass load_model(..., tokenizer=...)."
        ) from None


def load_processor(name: str, config: PreTrainedConfig, tokenizer: Any | None, local: bool) -> Any | None:
    """Load the processor of a model that takes images, or give ``None`` if the checkpoint has none.

    A vision encoder gets its image processor alone. Without torchvision, transformers cannot build the processors that
    also take video; they are then put together from the image processor and the tokenizer, without the video part.

    Raises:
        ModelError: there is one and it cannot be read.
    """
    if local and not _has(name, PROCESSOR_FILES):
        return None
    try:
        with loading():
            if _processor_class(name, config, local) is None or tokenizer is None:
                return AutoImageProcessor.from_pretrained(name, local_files_only=local)
            return _whole_processor(name, config, tokenizer, local)
    except ImportError:
        return None  # this image processor exists for torchvision alone; from_images says what to install
    except Exception as error:
        if not local:
            return None
        raise ModelError(
            f"load_model({name!r}): the image processor in this folder cannot be read ({first_line(error)}). Copy it "
            "again, or pass load_model(..., processor=...)."
        ) from None


def _whole_processor(name: str, config: PreTrainedConfig, tokenizer: Any, local: bool) -> Any:
    cls = _processor_class(name, config, local)
    assert cls is not None
    if "video_processor" not in cls.get_attributes() or importlib.util.find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(name, local_files_only=local),
        "tokenizer": tokenizer,
    }
    settings, _ = cls.get_processor_dict(name, local_files_only=local)
    if settings.get("chat_template") is None:
        settings["chat_template"] = getattr(tokenizer, "chat_template", None)
    return _without_video(cls).from_args_and_dict([parts.get(part) for part in cls.get_attributes()], settings)


def _without_video(cls: Any) -> Any:
    """Subclass a processor so that it accepts ``None`` for its video part, which exists for torchvision alone."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return type(None) if argument is None else cls.check_argument_for_proper_class(self, name, argument)

    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": check, "__doc__": cls.__doc__})


def _processor_class(name: str, config: PreTrainedConfig, local: bool) -> Any | None:
    """Find the class that joins tokenizer and image processor: named in the folder, else usual for the model type."""
    named = None
    if local:
        for file in (*PROCESSOR_FILES, "tokenizer_config.json"):
            path = Path(name) / file
            if named is None and path.is_file():
                named = json.loads(path.read_text(encoding="utf-8")).get("processor_class")
    named = named or PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return getattr(transformers, named, None) if isinstance(named, str) else None


def _has(name: str, files: tuple[str, ...]) -> bool:
    return any((Path(name) / file).is_file() for file in files)
