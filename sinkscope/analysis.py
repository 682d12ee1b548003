"""The frame of an analysis script: arguments, texts, readings kept in files, captioned figures, claims with numbers.

A script states what a paper claims, measures it on a model of the reader's choice, and says what was found here::

    with Study(__doc__, paper="gu2025", model="zoo:lm-python") as study:
        ds = study.reading("natural", lambda: sk.run(study.model, study.texts("prose"), [sk.KeyMass()]))
        study.figure(sk.plot.sink_map(sk.metrics.sink_rate(ds)), "sink_rate", source=ds)
        study.claim("Fig. 2", "most heads have a sink", paper="over half", found=f"{share:.0%}", agrees=share > 0.5)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from sinkscope import metrics, schema
from sinkscope.errors import PromptError
from sinkscope.files import replacing
from sinkscope.references import REFERENCES
from sinkscope.tasks import corpora

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

TextKind = Literal["prose", "code", "random", "repeated"]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper beside what was found.

    Attributes:
        figure: the paper's figure, table or section.
        claim: what the paper says.
        paper: the paper's number or picture.
        found: what was found here, with numbers, n and interval.
        agrees: None where the models at hand cannot show it.
    """

    figure: str
    claim: str
    paper: str
    found: str
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """``agrees``, ``differs`` or ``can't be seen here``."""
        return "can't be seen here" if self.agrees is None else "agrees" if self.agrees else "differs"


class Study:
    """One run of an analysis script; a context manager.

    On leaving, ``claims.json`` is written beside the figures and the claims are printed; after an exception it is not.

    Attributes:
        paper: key of the paper in :mod:`sinkscope.references`.
        folder: where this script's files go: ``OUTPUT/SCRIPT``.
        quick: whether to do as little as shows that the script works.
        given: the parsed arguments.
    """

    def __init__(self, description: str | None, *, paper: str, model: str | Sequence[str] = "zoo:lm-python") -> None:
        """Read the command line: ``--model``, ``--output``, ``--fresh``, ``--quick``.

        Args:
            description: the script's docstring; its first line is the title.
            paper: key of the paper.
            model: default of ``--model``; several for a script that loops over :meth:`each`.

        Raises:
            KeyError: the paper is not among the references.
        """
        self.description, self.paper = (description or "").strip(), REFERENCES[paper].key
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        models = [model] if isinstance(model, str) else list(model)
        says = "one or several of: minilm, planted, zoo:NAME, a folder, a hub id"
        parser.add_argument("--model", nargs="+", default=models, help=says)
        parser.add_argument("--output", type=Path, default=Path("out/analyses"), help="folder for readings and figures")
        parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
        parser.add_argument("--quick", action="store_true", help="as little as shows that the script works")
        self.given = parser.parse_args()
        self.quick: bool = self.given.quick
        script = Path(sys.argv[0])
        self.script = f"{script.resolve().parent.name}/{script.name}"
        self.folder: Path = self.given.output / script.resolve().parent.name / script.stem
        self._models: dict[str, Model] = {}
        self._source: str = self.given.model[0]
        self._figures: list[dict[str, str]] = []
        self._claims: list[Claim] = []
        self._stack = ExitStack()
        self._started = time.monotonic()

    def __enter__(self) -> Study:
        import matplotlib as mpl

        from sinkscope.plot import theme

        mpl.use("Agg")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(theme("page"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is None:
            self._finish()

    @property
    def model(self) -> Model:
        """The model of ``--model``, inside :meth:`each` the current one; loaded on first use."""
        return self.load(self._source)

    def each(self) -> Iterator[Model]:
        """Go through the models of ``--model``; readings and figures made meanwhile are kept apart by model."""
        for source in self.given.model:
            self._source = source
            yield self.model

    def load(self, source: str) -> Model:
        """Load a model once; ``planted`` is the constructed one of :func:`sinkscope.testing.planted_sink`."""
        if source not in self._models:
            from sinkscope import testing
            from sinkscope.models.handle import load_model

            self._models[source] = testing.planted_sink(0)[0] if source == "planted" else load_model(source)
        return self._models[source]

    def texts(
        self, kind: TextKind = "prose", *, n: int = 32, tokens: int = 64, seed: int = 0, model: Model | None = None
    ) -> Prompts:
        """Prompts of ``tokens`` tokens each, the model's own special tokens included, each from another text.

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

        model = model or self.model
        n = max(2, n // 4) if self.quick else n
        rng = np.random.default_rng(seed)
        before, after = _specials(model)
        body = tokens - len(before) - len(after)
        if kind in ("prose", "code"):
            middles = _windows(getattr(corpora, kind)(), model.tokenizer, n, body, rng)
        else:
            special = set(getattr(model.tokenizer, "all_special_ids", ())) | {*before, *after}
            vocabulary = int(model.config.get_text_config().vocab_size)
            ordinary = [i for i in range(vocabulary) if i not in special]
            size = (n, body if kind == "random" else 1)
            middles = np.broadcast_to(rng.choice(ordinary, size=size), (n, body)).tolist()
        return Prompts.from_ids([[*before, *middle, *after] for middle in middles], model)

    def reading(self, name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
        """Open the saved reading of this name and model, or make and save it: figures are drawn from files."""
        path = self.folder / f"{name}--{self._slug}{'--quick' if self.quick else ''}.nc"
        if self.given.fresh or not path.exists():
            schema.save(make(), path, overwrite=True)
        return schema.open(path)

    def figure(self, drawn: Figure | Axes, name: str, *, source: xr.Dataset | xr.DataArray, says: str = "") -> Path:
        """Caption a figure (model, n, and what ``says`` or the source's definition tells) and write it as PNG."""
        import matplotlib.pyplot as plt

        from sinkscope.plot import caption

        figure = drawn.get_figure(root=True) if hasattr(drawn, "get_figure") else drawn
        text = caption(figure, source, definition=says or None)  # type: ignore[arg-type]
        path = self.folder / (f"{name}--{self._slug}.png" if len(self.given.model) > 1 else f"{name}.png")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)  # type: ignore[union-attr]
        plt.close(figure)  # type: ignore[arg-type]
        self._figures.append({"file": path.name, "says": text})
        return path

    def claim(self, figure: str, claim: str, *, paper: str, found: str, agrees: bool | np.bool_ | None) -> Claim:
        """State one claim of the paper beside what was found; see :class:`Claim`."""
        made = Claim(figure, claim, paper, found, None if agrees is None else bool(agrees))
        self._claims.append(made)
        return made

    @property
    def _slug(self) -> str:
        return "".join(c if c.isalnum() or c in "-._" else "-" for c in self._source.strip("/."))

    def _finish(self) -> None:
        data = {
            "script": self.script,
            "paper": self.paper,
            "title": self.description.splitlines()[0] if self.description else self.script,
            "description": self.description,
            "models": sorted({model.id for model in self._models.values()}) or self.given.model,
            "quick": self.quick,
            "seconds": round(time.monotonic() - self._started, 1),
            "figures": self._figures,
            "claims": [dataclasses.asdict(claim) | {"verdict": claim.verdict} for claim in self._claims],
        }
        with replacing(self.folder / "claims.json") as temporary:
            temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        print(data["title"])
        for claim in self._claims:
            print(
                f"  {claim.figure}: {claim.claim}\n    paper: {claim.paper}\n    here:  {claim.found}: {claim.verdict}"
            )
        print(f"  {len(self._figures)} figures in {self.folder}")


def _specials(model: Model) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text; without a tokenizer the beginning-of-sequence id alone."""
    if model.tokenizer is None:
        start = getattr(model.config, "bos_token_id", None)
        return ([] if start is None else [int(start)]), []
    bare = model.tokenizer("a b", add_special_tokens=False)["input_ids"]
    whole = model.tokenizer("a b")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return list(whole[:at]), list(whole[at + len(bare) :])


def _windows(texts: list[str], tokenizer: Any, n: int, length: int, rng: np.random.Generator) -> list[list[int]]:
    """Windows that do not overlap, one text after the other in random order, then round again."""
    if tokenizer is None:
        raise PromptError("Study.texts: this model has no tokenizer. Use kind='random' or kind='repeated'.")
    found: list[list[list[int]]] = []
    for which in rng.permutation(len(texts)):
        if len(found) == n:
            break
        ids = tokenizer(texts[which], add_special_tokens=False, verbose=False)["input_ids"]
        starts = rng.permutation(len(ids) // length) * length
        if starts.size:
            found.append([ids[start : start + length] for start in starts])
    most = max(map(len, found), default=0)
    rounds = [windows[turn] for turn in range(most) for windows in found if turn < len(windows)]
    if len(rounds) < n:
        raise PromptError(f"Study.texts: {n} windows of {length} tokens were asked for, the text has {len(rounds)}.")
    return rounds[:n]


def describe_difference(
    values: xr.DataArray, to: xr.DataArray | None = None, *, digits: int = 3
) -> tuple[str, xr.Dataset]:
    """Return the mean over prompts, or the paired difference to ``to``, in words, and as ``metrics.compare`` gives it.

    The words hold the bootstrap interval and n: what a claim needs.
    """
    found = metrics.compare(values, to=xr.zeros_like(values) if to is None else to)
    mean, low, high = (f"{float(found[name]):+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{mean} [{low}, {high}], n = {int(found['n'])} prompts", found


def has_sign(found: xr.Dataset, sign: int = 1) -> bool | None:
    """Return whether an effect has the sign claimed; None where its interval holds 0, so that it cannot be seen."""
    low, high = float(found["low"]), float(found["high"])
    if low <= 0 <= high or not np.isfinite([low, high]).all():
        return None
    return (low > 0) == (sign > 0)


def highest_tokens(scores: xr.DataArray, among: xr.DataArray, count: int) -> xr.DataArray:
    """Return the ``count`` tokens of each prompt with the highest score: bool (prompt key), as ``among`` is."""
    order = np.where(among.values, scores.transpose("prompt", "key").values, -np.inf)
    ranked = np.argsort(-order, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(among.shape, dtype=bool)
    np.put_along_axis(chosen, ranked, True, axis=1)
    return among.copy(data=chosen & among.values)


def spread_layers(model: Model, most: int = 8) -> list[int]:
    """Return all layers of a shallow model, else ``most`` of them at even distances."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    return sorted({int(layer) for layer in np.linspace(0, depth - 1, min(depth, most)).round()})
