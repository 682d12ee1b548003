"""One run of an analysis script: its command line, its models, and the files it leaves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from sinkscope import schema
from sinkscope.analysis.claims import Claim, Estimate, Verdict, judged
from sinkscope.analysis.store import ReadingStore, code_of, digest
from sinkscope.analysis.texts import TextKind, token_rows
from sinkscope.errors import SinkscopeError, UnsupportedModelError
from sinkscope.files import replacing
from sinkscope.references import REFERENCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sinkscope.edits.base import Edit
    from sinkscope.models.handle import Model
    from sinkscope.probes.base import Probe
    from sinkscope.prompts import Prompts

LANGUAGE_MODELS = ("smollm2-135m", "gemma3-270m", "zoo:lm-python")
"""Models on which claims about trained language models are looked for: two that people know, and the zoo's own."""


VISION_LANGUAGE_MODELS = ("zoo:vlm-smol-sinks", "zoo:vlm-smol", "zoo:vlm-shapes")
"""Models on which claims about vision-language models are looked for: two of pretrained parts, the first of which keeps
visual sinks, and a small one."""

VISUAL_SINK_MODELS = tuple(name for name in VISION_LANGUAGE_MODELS if name != "zoo:vlm-smol")
"""Of these, what edits of visual sinks, and of late heads, are tried on: the other has none, and costs as much."""


class Study:
    """One run of an analysis script; a context manager.

    On leaving, ``claims.json`` is written beside the figures and the claims are printed; after an exception it is not,
    and an error of sinkscope's own is told in one line.

    Attributes:
        paper: key of the paper in :mod:`sinkscope.references`.
        folder: where this script's files go: ``OUTPUT/PAPER/SCRIPT``.
        quick: whether to do as little as shows that the script works.
        given: the parsed arguments.
        subject: the model that figures and claims are about; :meth:`for_each` and :meth:`each` set it, a script that
            measures another one does so itself.
    """

    def __init__(self, description: str | None, *, paper: str, model: str | Sequence[str] = "zoo:lm-python") -> None:
        """Read the command line: ``--model``, ``--output``, ``--fresh``, ``--quick``.

        Args:
            description: the script's docstring; its first line is the title.
            paper: key of the paper.
            model: default of ``--model``. Empty for a script that reads the zoo's training curves: it takes no
                ``--model``, so nothing can be said of a model that was not measured.

        Raises:
            KeyError: the paper is not among the references.
        """
        self.description, self.paper = (description or "").strip(), REFERENCES[paper].key
        defaults = [model] if isinstance(model, str) else list(model)
        self.given = _parse(description, defaults)
        self.quick: bool = self.given.quick
        script = Path(sys.argv[0])
        self.script = f"{script.resolve().parent.name}/{script.name}"
        self.folder: Path = self.given.output / script.resolve().parent.name / script.stem
        self.subject = ""
        self._source: str = self.given.model[0] if self.given.model else ""
        self._asked = self.given.model != defaults
        self._one_of_several = False
        self._models: dict[str, Model] = {}
        self._ids: list[str] = []
        self._left_out: dict[str, str] = {}
        self._figures: list[dict[str, str | float]] = []
        self._claims: list[Claim] = []
        self._store = ReadingStore(self.given.output / "readings", fresh=self.given.fresh)
        self._code = code_of(script)
        self._stack = ExitStack()
        self._started = time.monotonic(), time.process_time()

    def __enter__(self) -> Study:
        import matplotlib as mpl

        from sinkscope.plot import theme

        mpl.use("Agg")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(theme("page"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._stack.close()
        if kind is None:
            self._finish()
        elif isinstance(error, SinkscopeError):
            raise SystemExit(f"{self.script}: {error}") from None

    @property
    def model(self) -> Model:
        """The model of ``--model``, inside :meth:`for_each` and :meth:`each` the current one; loaded on first use."""
        return self.load(self._source)

    def each(self) -> Iterator[Model]:
        """Go through the models of ``--model``; figures and claims made meanwhile are kept apart by model."""
        for source in self.given.model:
            self._source, self.subject, self._one_of_several = source, "", len(self.given.model) > 1
            yield self.model
            self._models.pop(source, None)  # two language models at once are a gigabyte
        self._one_of_several = False

    def for_each(self, judge: Callable[[Study, Model], None]) -> None:
        """Call ``judge`` with each model of ``--model``; one that cannot be had or judged is left out, and why is told.

        Raises:
            UnsupportedModelError: no model is left, or one that was asked for by ``--model`` could not be judged.
        """
        for source in self.given.model:
            self._source, self.subject, self._one_of_several = source, "", len(self.given.model) > 1
            try:
                judge(self, self.model)
            except SinkscopeError as error:
                self._left_out[source] = str(error)
                print(f"{self.script}: {source} is left out: {error}", file=sys.stderr)
            self._models.pop(source, None)
        self._one_of_several = False
        if self._left_out and (self._asked or len(self._left_out) == len(self.given.model)):
            raise UnsupportedModelError("; ".join(f"{name}: {why}" for name, why in self._left_out.items()))

    def load(self, source: str) -> Model:
        """Load a model once.

        ``planted`` is the one of :func:`sinkscope.testing.planted_sink`, ``tiny:NAME`` one with random weights.
        """
        if source not in self._models:
            from sinkscope import testing
            from sinkscope.models.handle import load_model

            if source == "planted":
                self._models[source] = testing.planted_sink(0)[0]
            else:
                tiny = source.removeprefix("tiny:")
                self._models[source] = load_model(source if tiny == source else testing.tiny(tiny))
        if source == self._source:
            self.subject = self.subject or self._models[source].id
        self._ids.append(self._models[source].id)
        return self._models[source]

    def texts(
        self, kind: TextKind = "prose", *, n: int = 32, tokens: int = 64, seed: int = 0, model: Model | None = None
    ) -> Prompts:
        """Prompts of ``tokens`` tokens each, the model's own special tokens included, each from another text.

        Scripts that leave length and seed alone read the same prompts, and share their readings.

        Args:
            kind: ``prose`` (docstrings of SciPy), ``code`` (standard-library source that the zoo was not trained on),
                ``random`` (ordinary tokens drawn uniformly) or ``repeated`` (one ordinary token again and again).
            n: prompts; a quarter of them under ``--quick``.
            tokens: length of each.
            seed: decides the draw.
            model: the model that reads them; that of ``--model`` if left out.

        Raises:
            PromptError: too little text for ``n`` windows that do not overlap.
        """
        from sinkscope.prompts import Prompts

        reader = model or self.model
        rows = token_rows(reader, kind, max(2, n // 4) if self.quick else n, tokens, seed)
        return Prompts.from_ids(rows, reader)

    def run(
        self,
        prompts: Prompts,
        probes: Sequence[Probe],
        edits: Sequence[Edit] | Mapping[str, Sequence[Edit]] = (),
        *,
        batch_size: int = 8,
    ) -> xr.Dataset:
        """Measure the current model, or take from files what any script read of it before.

        Args:
            prompts: the prompts.
            probes: what to read.
            edits: edits of one run; or variants by label, or a grid, for a sweep with the run without edits in front
                (:func:`sinkscope.sweep` with ``baseline=True``). A sweep that was cut off goes on where it was.
            batch_size: prompts per pass.
        """
        if not isinstance(edits, Mapping):
            return self._store.run(self.model, prompts, probes, edits, batch_size)
        from sinkscope.engine.sweep import sweep

        cache = self._store.folder / "sweeps"
        return sweep(self.model, prompts, edits, probes, batch_size=batch_size, baseline=True, cache=cache)

    def reading(self, name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
        """Open the saved result of this name, model and script as it stands, or make and save it.

        For procedures that are more than one run or sweep.
        """
        of = digest([self.model.fingerprint, self._code, self.quick])[:12]
        path = self.folder / f"{name}--{self._slug}-{of}.nc"
        if self.given.fresh or not path.exists():
            schema.save(make(), path, overwrite=True)
        return schema.open(path)

    def figure(self, drawn: Figure | Axes, name: str, *, source: xr.Dataset | xr.DataArray, says: str = "") -> Path:
        """Caption a figure (model, n, and what ``says`` or the source's definition tells) and write it as PNG."""
        import matplotlib.pyplot as plt

        from sinkscope.analysis.legible import smallest_text
        from sinkscope.plot import caption

        figure = drawn.get_figure(root=True) if hasattr(drawn, "get_figure") else drawn
        text = caption(figure, source, definition=says or None)  # type: ignore[arg-type]
        path = self.folder / (f"{name}--{self._slug}.png" if self._one_of_several else f"{name}.png")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)  # type: ignore[union-attr]
        letters = round(smallest_text(figure)[0], 2)  # type: ignore[arg-type]
        plt.close(figure)  # type: ignore[arg-type]
        self._figures.append({"file": path.name, "says": text, "letters": letters})
        return path

    def claim(
        self, figure: str, claim: str, *, paper: str, found: str = "", agrees: Verdict, number: Estimate | None = None
    ) -> Claim:
        """State one claim of the paper beside what was found on the current model.

        Args:
            figure: the paper's figure, table or section.
            claim: what the paper says.
            paper: the paper's number or picture. Empty for a finding of this project's own, such as a control or a
                check of the method, which is not counted as the paper's.
            found: what was found, in words; the number stands in front of it.
            agrees: True, False, or why it cannot be seen here, in words.
            number: the estimate that was judged, for the table of models.
        """
        words = "" if number is None else number.counted
        said = "; ".join(part for part in (words, found) if part)
        holds, reason = judged(agrees, said)
        made = Claim(figure, claim, paper, said, holds, self.subject or self._source, words, reason)
        self._claims.append(made)
        return made

    @property
    def _slug(self) -> str:
        return "".join(c if c.isalnum() or c in "-._" else "-" for c in self._source.strip("/."))

    def _finish(self) -> None:
        wall, cpu = time.monotonic() - self._started[0], time.process_time() - self._started[1]
        data = {
            "script": self.script,
            "paper": self.paper,
            "title": self.description.splitlines()[0] if self.description else self.script,
            "description": self.description,
            "models": sorted({*self._ids, *(claim.model for claim in self._claims)}),
            "left_out": self._left_out,
            "quick": self.quick,
            "asked": self._asked,
            "code": self._code,
            "seconds": round(wall, 1),
            "processor_seconds": round(cpu, 1),
            "figures": self._figures,
            "claims": [dataclasses.asdict(claim) | {"verdict": claim.verdict} for claim in self._claims],
        }
        with replacing(self.folder / "claims.json") as temporary:
            temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        print(data["title"])
        for claim in self._claims:
            print(f"  {claim.model}, {claim.figure}: {claim.claim}\n    paper: {claim.paper or '-'}")
            print(f"    here:  {claim.found}: {claim.verdict}{f' ({claim.reason})' if claim.reason else ''}")
        print(f"  {len(self._figures)} figures in {self.folder}; {wall:.0f} s, {cpu:.0f} s of processor time")


def need(model: Model, holds: bool, what: str) -> None:
    """Refuse a model that is not of the kind that a script asks its question of.

    Raises:
        UnsupportedModelError: ``holds`` is false; the message says what is needed.
    """
    if not holds:
        raise UnsupportedModelError(f"{model.id}: this analysis needs {what}.")


def _parse(description: str | None, defaults: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if defaults:
        says = "one or several of: a named model (smollm2-135m, minilm ...), planted, zoo:NAME, a folder, a hub id"
        parser.add_argument("--model", nargs="+", default=defaults, help=says)
    parser.add_argument("--output", type=Path, default=Path("out/analyses"), help="folder for readings and figures")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--quick", action="store_true", help="as little as shows that the script works")
    parser.set_defaults(**({} if defaults else {"model": []}))
    return parser.parse_args()
