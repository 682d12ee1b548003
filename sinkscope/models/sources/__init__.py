"""Where models come from: a folder, a hub id, a GGUF file, Ollama's store, a named model.

    resolve("zoo:lm-python")     resolve("smollm2-135m")     resolve("model.gguf")     resolve("ollama:llama3.2:1b")

Each source ends in a :class:`Checkpoint`, a folder or hub id that transformers can load.
"""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub

from sinkscope.errors import ModelError
from sinkscope.models.sources import gguf, named, ollama
from sinkscope.models.sources.base import Checkpoint, ModelSource
from sinkscope.models.sources.named import SOURCES, register, sources
from sinkscope.models.weights import unreachable


def resolve(source: str | os.PathLike[str], gguf_file: str | None = None) -> Checkpoint:
    """Tell what a source is, and give its checkpoint.

    Args:
        source: ``zoo:NAME``, a named model, ``ollama:NAME[:TAG]``, a ``.gguf`` file, a folder, or a hub id. A folder
            of the name of a named model is the folder.
        gguf_file: name of a GGUF file in that folder or hub repository.

    Raises:
        ModelError: it is spelled like a path and there is no such folder, the folder holds no model, or as the source.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if "\0" in text or len(os.fsencode(path.name.encode(errors="replace"))) > 255 or not _encodable(text):
        raise ModelError(f"load_model({text[:60]!r}): no folder or model can have such a name. Check the spelling.")
    if gguf_file is not None:
        return _of_gguf(text, path, gguf_file)
    if text.startswith("zoo:"):
        return named.zoo_checkpoint(text)
    if text.startswith(ollama.PREFIX):
        return ollama.checkpoint(text)
    if text.strip() and path.is_dir():
        return _of_folder(text, path)
    if text in SOURCES:
        return SOURCES[text].resolve()
    if path.is_file():
        if path.suffix != ".gguf" and not gguf.begins_as(path):  # Ollama's blobs have no ending
            raise ModelError(f"load_model({text!r}): this is a file. Name the folder that holds it and config.json.")
        return gguf.checkpoint(path)
    looks_local = isinstance(source, os.PathLike) or text.startswith((".", "~", "/")) or text.count("/") > 1
    if text.endswith(".gguf"):
        raise ModelError(f"load_model({text!r}): there is no such file. Check the path.")
    if looks_local or "\\" in text or not text.strip():
        raise ModelError(f"load_model({text!r}): there is no such folder. Check the path.")
    return Checkpoint(text, local=False, label=text)


def _of_folder(text: str, path: Path) -> Checkpoint:
    if (path / "config.json").is_file():
        return Checkpoint(str(path), local=True)
    found = sorted(entry.name for entry in path.iterdir())
    files = [name for name in found if name.endswith(".gguf")]
    way = f"gguf_file={files[0]!r}" if files else "the folder that model.save_pretrained wrote"
    raise ModelError(
        f"load_model({text!r}): this folder has no config.json (it holds {(files or found)[:6] or 'nothing'}). "
        f"Name {way}."
    )


def _of_gguf(text: str, path: Path, gguf_file: str) -> Checkpoint:
    if Path(gguf_file).name != gguf_file:
        raise ModelError(f"load_model(gguf_file={gguf_file!r}): give the name of a file in {text}, without a path.")
    if path.is_dir():
        if not (path / gguf_file).is_file():
            files = sorted(entry.name for entry in path.glob("*.gguf"))
            raise ModelError(f"load_model({text!r}, gguf_file={gguf_file!r}): no such file; it has {files or 'none'}.")
        return gguf.checkpoint(path / gguf_file)
    try:
        file = huggingface_hub.hf_hub_download(text, gguf_file)
    except (OSError, ValueError) as error:
        raise unreachable(text, error) from None
    return gguf.checkpoint(Path(file), label=f"{text}/{gguf_file}")


__all__ = ["SOURCES", "Checkpoint", "ModelSource", "register", "resolve", "sources"]


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
