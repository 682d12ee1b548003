"""Options of the command line as dataclasses, and how they become a model and prompts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from sinkscope import registry, schema, textform
from sinkscope.errors import OutputError, ProbeError, PromptError, SchemaError

if TYPE_CHECKING:
    import xarray as xr

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

_MODEL = Group("Model", sort_key=3)
_PROMPTS = Group("Prompts", sort_key=1)
_READING = Group("Reading", sort_key=2)

STANDARD_PROBES: tuple[str, ...] = (
    "key-mass", "role-share queries=all", "entropy", "value-norm", "residual-norm", "massive-activations",
)  # fmt: skip
"""What is read when no probe is named: enough for every finding and figure about sinks."""

Texts = Annotated[list[str], Parameter(negative=())]


def whole(_kind: object, tokens: Sequence[Token]) -> int:
    """Read a whole number; the library would round 1.5."""
    return int(tokens[0].value)


Whole = Annotated[int, Parameter(converter=whole)]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the files that are taken out of a folder of images."""


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Give image files; a folder stands for the images in it, in the order of their names.

    Raises:
        PromptError: no such file, or a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise PromptError(f"--image {path}: this folder holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        if not path.is_dir() and not path.is_file():
            raise PromptError(f"--image {path}: no such file.")
        found += inside
    return found


@Parameter(name="*", group=_PROMPTS)
@dataclass(frozen=True)
class PromptOptions:
    """What to measure on.

    Attributes:
        text: A prompt. Give it several times for several prompts. With --image: the question about the image.
        text_file: File of prompts; --split says what separates them.
        split: Whether each paragraph of the text file, each line, or the whole file is one prompt.
        ids: A prompt as token ids with commas: 1,15,27. Taken as it is, nothing added.
        image: Image, or folder of images: prompts of a vision encoder, or beside --text for a vision-language model.
    """

    text: Texts = field(default_factory=list)
    text_file: Path | None = None
    split: Literal["paragraph", "line", "none"] = "paragraph"
    ids: Texts = field(default_factory=list)
    image: Annotated[list[Path], Parameter(negative=())] = field(default_factory=list)

    def texts(self) -> list[str]:
        """Give the texts, those of the file after those of --text.

        Raises:
            PromptError: the file cannot be read as UTF-8, or holds no text.
        """
        if self.text_file is None:
            return list(self.text)
        try:
            content = self.text_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise PromptError(f"--text-file {self.text_file}: it cannot be read: {reason}.") from None
        found = split_text(content, self.split)
        if not found:
            raise PromptError(f"--text-file {self.text_file}: it holds no text. Give a file with at least one word.")
        return [*self.text, *found]

    def check(self) -> None:
        """Refuse options that contradict each other, before a model is loaded.

        Raises:
            PromptError: nothing to measure on, or ids beside texts or images.
        """
        if not (self.text or self.text_file or self.ids or self.image):
            raise PromptError("run: no prompts. Give --text, --text-file, --ids or --image.")
        if self.ids and (self.text or self.text_file or self.image):
            raise PromptError("run: --ids cannot be mixed with --text, --text-file or --image. Run them one by one.")
        self.images()

    def images(self) -> list[Path]:
        """Give the image files, those of a folder in the order of their names.

        Raises:
            PromptError: no such file, or a folder without images.
        """
        return image_files(self.image)


@Parameter(name="*", group=_READING)
@dataclass(frozen=True)
class ReadingOptions:
    """What is read, and how.

    Attributes:
        probe: What to read, such as entropy or "max-attention keys=image". Give it several times for several. Default:
            everything the findings and figures need.
        batch_size: Prompts per forward pass. It changes no number, only time and memory.
        tower: Which part of a larger model to read: vision. Default: the language model.
    """

    probe: Texts = field(default_factory=list)
    batch_size: Whole = 1
    tower: str | None = None

    def probes(self) -> list[Any]:
        """Make the probes, the standard ones if none is named.

        Raises:
            ProbeError: a malformed or unknown probe.
        """
        classes = registry.Table("probe")
        return [textform.parse(text, classes, ProbeError, "probe") for text in self.probe or STANDARD_PROBES]


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions:
    """Where the readings go.

    Attributes:
        output: File to write (netCDF).
        overwrite: Replace the file if it exists.
    """

    output: Output = Path("readings.nc")
    overwrite: bool = False

    def check(self) -> Path:
        """Give the path, after it was found to be writable.

        Raises:
            OutputError: as ``sinkscope.schema.check_output``.
        """
        return schema.check_output(self.output, overwrite=self.overwrite)

    def save(self, ds: xr.Dataset) -> None:
        """Write a reading; where that fails after the work is done, keep it in the folder for temporary files.

        Raises:
            OutputError: the place named cannot be written; the message says where the reading is now.
        """
        try:
            schema.save(ds, self.output, overwrite=self.overwrite)
        except OutputError as error:
            try:
                kept = schema.save(ds, Path(tempfile.mkdtemp(prefix="sinkscope-")) / self.output.name)
            except (OutputError, OSError):
                raise error from None
            raise OutputError(f"{error} What was measured is kept in {kept}.") from None


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """What is changed, and where finished work is kept.

    Attributes:
        edit: What to change, such as "scale-keys gamma=0.5 keys=first". Several work together, in the order given.
        cache: Folder of finished batches. A run that was interrupted goes on where it was.
    """

    edit: Texts = field(default_factory=list)
    cache: Path | None = None


@Parameter(name="*", group=_MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded.

    Attributes:
        dtype: Number type of the weights: float32, bfloat16, float16. Default: as saved.
        device: Where to run: cpu, cuda, cuda:1, mps. Default: cpu.
        backend: Which library drives the model; auto takes transformers and falls back to TransformerLens.
        gguf_file: GGUF file in the folder, or hub repository, that is named as the model.
    """

    dtype: str | None = None
    device: str | None = None
    backend: Literal["auto", "transformers", "lens"] = "auto"
    gguf_file: str | None = None


def split_text(content: str, split: str) -> list[str]:
    """Cut a text into prompts: paragraphs (an empty line between), lines, or the whole; empty ones are left out."""
    if split == "none":
        parts = [content]
    elif split == "line":
        parts = content.splitlines()
    else:
        parts = re.split(r"\n[^\S\n]*\n", content)
    return [part.strip("\n") for part in parts if part.strip()]


def load(source: str, options: ModelOptions) -> Model:
    """Load a model by its name on the command line.

    Raises:
        ModelError: as ``sinkscope.load_model``.
    """
    from sinkscope.models.handle import load_model

    quiet_libraries()
    return load_model(
        source, dtype=options.dtype, device=options.device, backend=options.backend, gguf_file=options.gguf_file
    )


def make_prompts(options: PromptOptions, texts: Sequence[str], model: Model) -> Prompts:
    """Make the prompts that fit the model: texts, ids, images, or questions about images.

    Raises:
        PromptError: ids that are no numbers, or images and texts whose numbers do not fit each other.
    """
    from sinkscope.prompts import Prompts

    if options.ids:
        return Prompts.from_ids([numbers(text) for text in options.ids], model)
    images = options.images()
    if not images:
        return Prompts.from_texts(texts, model)
    if not texts:
        return Prompts.from_images([str(path) for path in images], model)
    questions = list(texts) * len(images) if len(texts) == 1 else list(texts)
    if len(questions) != len(images):
        raise PromptError(
            f"run: {len(images)} images and {len(texts)} texts. Give one text for all images, or one for each."
        )
    items = [{"image": str(path), "text": text} for path, text in zip(images, questions, strict=True)]
    return Prompts.from_chat(items, model)


def numbers(text: str) -> list[int]:
    """Read token ids that are written with commas.

    Raises:
        PromptError: these are no whole numbers, or one is missing between two commas.
    """
    try:
        return [int(number) for part in text.split(",") for number in part.split() or [part]]
    except ValueError:
        raise PromptError(
            f"--ids {text!r}: these are not token ids. Write whole numbers with commas: 1,15,27."
        ) from None


def leading_dims(ds: xr.Dataset) -> list[str]:
    """Name the dims that a sweep or a grid put in front: all that a single run, or a survey, does not have."""
    if "survey" in ds.attrs:
        return []
    return [str(dim) for dim in ds.dims if dim == "edit" or dim not in schema.DIMS]


def selected(ds: xr.Dataset, labels: Sequence[str]) -> xr.Dataset:
    """Select labels written ``dim=label`` from a reading; a dim of a sweep is dropped then, others keep one label.

    Raises:
        SchemaError: not of that form, no such dimension, or no such label.
    """
    leading = leading_dims(ds)
    for text in labels:
        dim, equals, label = text.partition("=")
        if not equals or dim not in ds.dims or dim not in ds.coords:
            labelled = sorted(str(d) for d in ds.dims if d in ds.coords)
            raise SchemaError(f"--select {text}: write DIM=LABEL with one of the dims {labelled}.")
        known = {str(value): value for value in ds[dim].values.tolist()}
        if label not in known:
            raise SchemaError(f"--select {text}: {dim} has no label {label!r}; its labels are {list(known)}.")
        ds = ds.sel({dim: known[label]}, drop=True) if dim in leading else ds.sel({dim: [known[label]]})
    return ds


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and notes off the terminal; what matters is an error of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
