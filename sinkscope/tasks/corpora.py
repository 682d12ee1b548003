"""Text that lies on any machine with sinkscope: short texts that are shipped, source code, prose of docstrings.

The short texts were written for this package, and nothing here is trained on them. Code and prose are never shipped but
read from the machine's own installation. Code: the CPython standard library (PSF licence), one file in twenty held out
from the training of the zoo. Prose: the docstrings of SciPy (BSD licence), on which nothing here is trained.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sysconfig
from importlib import resources
from pathlib import Path

from sinkscope.errors import ModelError

SKIPPED = ("site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__", "lib2to3")
"""Folders left out: other people's packages, character tables and generated text."""


def stdlib_files(root: Path | None = None) -> list[Path]:
    """List the ``.py`` files of the standard library in a fixed order.

    Raises:
        ModelError: the folder holds no Python source.
    """
    folder = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    files = sorted(p for p in folder.rglob("*.py") if not set(SKIPPED) & set(p.relative_to(folder).parts))
    if not files:
        raise ModelError(f"corpus: no .py file under {folder}. Name a folder of Python source with root=.")
    return files


def split_files(files: list[Path], root: Path, held_out: int = 20) -> tuple[list[Path], list[Path]]:
    """Split whole files into training and held-out ones by a hash of the path below ``root`` (one in ``held_out``)."""
    train, test = [], []
    for path in files:
        digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
        (test if digest[0] % held_out == 0 else train).append(path)
    return train, test


def read_texts(files: list[Path]) -> list[str]:
    """Read the files as UTF-8, leaving out those that are not, and those shorter than 200 characters."""
    texts = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) >= 200:
            texts.append(text)
    return texts


def texts() -> list[str]:
    """Return 24 short texts of 30 to 60 tokens: prose, dialogue, lists, code."""
    return _shipped("texts.txt", "\n\n")


def sentences() -> list[str]:
    """Return 24 texts of one or two sentences, for encoders of sentences."""
    return _shipped("sentences.txt", "\n\n")


def snippets() -> list[str]:
    """Return short pieces of Python."""
    return _shipped("snippets.txt", "# ----\n")


def _shipped(name: str, between: str) -> list[str]:
    content = resources.files("sinkscope.data").joinpath(name).read_text(encoding="utf-8")
    return [part.strip("\n") for part in content.split(between) if part.strip()]


def code() -> list[str]:
    """Return the source files of the standard library that the zoo's language models were not trained on."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return read_texts(split_files(stdlib_files(root), root)[1])


@functools.cache
def prose(package: str = "scipy", part: str = "stats", at_least: int = 400) -> list[str]:
    """Docstrings of at least ``at_least`` characters in the source of an installed package, one part of it.

    Raises:
        ModelError: the package is not installed with its source.
    """
    found = importlib.util.find_spec(package)
    folders = [Path(place) / part for place in (found.submodule_search_locations or [])] if found else []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts: dict[str, None] = {}
    for path in sorted(file for folder in folders for file in folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and len(text) >= at_least:
                texts[text] = None
    if not texts:
        raise ModelError(f"prose: no docstrings under {package}/{part}. Install the package with its source.")
    return list(texts)
