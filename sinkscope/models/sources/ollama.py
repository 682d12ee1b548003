"""Models that Ollama has pulled: its manifest names the blob, which is a GGUF file."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models.sources import gguf
from sinkscope.models.sources.base import Checkpoint

log = logging.getLogger("sinkscope")

PREFIX = "ollama:"
VARIABLE = "OLLAMA_MODELS"
"""Environment variable, Ollama's own, that says where its store is."""

STORES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models")
"""Where Ollama keeps models when the variable is not set: the user's, and the service's on Linux."""

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
"""What Ollama puts in for the parts of a name that are left out."""

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MEDIA_TYPE = "application/vnd.ollama.image."


def checkpoint(source: str) -> Checkpoint:
    """Return the converted folder of ``ollama:[HOST/][NAMESPACE/]NAME[:TAG]``.

    Raises:
        ModelError: there is no such model in the store, its blob is absent, or as :func:`gguf.checkpoint`.
        UnsupportedModelError: the model is an adapter on top of another.
    """
    store, manifest = _manifest(source)
    layers = {layer.get("mediaType", ""): str(layer.get("digest", "")) for layer in manifest.get("layers", ())}
    if MEDIA_TYPE + "adapter" in layers:
        raise UnsupportedModelError(
            f"load_model({source!r}): this is an adapter on top of another model, and llama.cpp's adapters cannot be "
            "read. Load the model without it, or the original adapter with PEFT."
        )
    digest = layers.get(MEDIA_TYPE + "model", "")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ModelError(f"load_model({source!r}): its manifest names no model. Pull it again with Ollama.")
    blob = store / "blobs" / digest.replace(":", "-")
    if not blob.is_file():
        raise ModelError(f"load_model({source!r}): {blob} is absent. Pull the model again with Ollama.")
    if MEDIA_TYPE + "projector" in layers:
        log.warning("%s: only its language model is read, llama.cpp's projector of pictures is left out", source)
    return gguf.checkpoint(blob, label=source, source=source)


def _manifest(source: str) -> tuple[Path, dict]:
    """Find the manifest of a name in the first store that has it."""
    path = _place(source)
    stores = [Path(store).expanduser() for store in ([os.environ[VARIABLE]] if os.environ.get(VARIABLE) else STORES)]
    for store in stores:
        file = store / "manifests" / path
        if file.is_file():
            try:
                return store, json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ModelError(f"load_model({source!r}): {file} cannot be read ({error}).") from None
    have = sorted({_name(file.relative_to(s / "manifests")) for s in stores for file in s.glob("manifests/*/*/*/*")})
    raise ModelError(
        f"load_model({source!r}): no such model in Ollama's store ({', '.join(map(str, stores))}), which has "
        f"{', '.join(have) or 'no model'}. Pull it with Ollama, or set {VARIABLE} to the folder of its models."
    )


def _place(source: str) -> Path:
    """Turn ``ollama:[HOST/][NAMESPACE/]NAME[:TAG]`` into the path of its manifest under ``manifests``."""
    name, _, tag = source.removeprefix(PREFIX).partition(":")
    parts = name.split("/")
    parts = [*(HOST, NAMESPACE)[: 3 - len(parts)], *parts, tag or TAG]
    if len(parts) != 4 or not all(PART.fullmatch(part) for part in parts):
        raise ModelError(f"load_model({source!r}): write ollama:NAME or ollama:NAME:TAG, as `ollama list` shows it.")
    return Path(*parts)


def _name(path: Path) -> str:
    """Turn the path of a manifest back into the name that is typed."""
    host, namespace, name, tag = path.parts
    front = [] if (host, namespace) == (HOST, NAMESPACE) else [namespace] if host == HOST else [host, namespace]
    return PREFIX + "/".join([*front, name]) + ("" if tag == TAG else f":{tag}")
