"""The look of every figure: one theme, one set of colours, one caption line. No torch, no measuring."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec, TypedDict

import matplotlib as mpl
import xarray as xr
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from sinkscope.arguments import checked
from sinkscope.errors import SchemaError
from sinkscope.roles import ROLE_COLOURS as ROLE_COLOURS

Kind = Literal["paper", "slide", "page"]
P = ParamSpec("P")

SEQUENTIAL_STOPS: tuple[str, ...] = ("#ffffff", "#e0f3db", "#a8ddb5", "#4eb3d3", "#0868ac", "#081d58")
SEQUENTIAL = LinearSegmentedColormap.from_list("sinkscope", SEQUENTIAL_STOPS)
"""Colour map of magnitudes and shares: white at nothing, evenly darker up to the largest, so it survives grey print."""
DIVERGING = "RdBu_r"
"""Colour map of signed effects: white is no effect."""
PALETTE: tuple[str, ...] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#404040")
"""Categorical colours (Okabe and Ito, told apart with every common colour-vision deficiency), dark enough for lines."""
SINK, OTHER, CONTROL = PALETTE[1], PALETTE[0], "#7F7F7F"
"""Colours that keep their meaning in every figure: the sink, the other tokens, controls."""
MISSING = "#D9D9D9"
"""Colour of a cell that was not measured (NaN)."""

_SIZES: dict[str, tuple[float, float, float]] = {
    "paper": (3.3, 2.4, 7.5),
    "slide": (9.0, 5.6, 17),
    "page": (6.6, 4.2, 10),
}
_ACTIVE: ContextVar[str | None] = ContextVar("sinkscope_plot_theme", default=None)
_CAPTIONS: ContextVar[bool] = ContextVar("sinkscope_plot_captions", default=True)


def settings(kind: Kind = "paper") -> dict[Any, Any]:
    """Return the matplotlib settings of one medium.

    Args:
        kind: ``"paper"`` is one column (3.3 in), ``"slide"`` a projected page, ``"page"`` the report.
    """
    if not isinstance(kind, str) or kind not in _SIZES:
        raise SchemaError(f"theme({kind!r}): there is no such theme. Use one of {sorted(_SIZES)}.")
    width, height, size = _SIZES[kind]
    return {
        "figure.figsize": (width, height), "figure.dpi": 150, "savefig.dpi": 300 if kind == "paper" else 150,
        "figure.constrained_layout.use": True, "figure.facecolor": "white", "axes.facecolor": "white",
        "font.family": ["DejaVu Sans"], "font.size": size, "axes.titlesize": size * 1.1, "axes.labelsize": size,
        "xtick.labelsize": size * 0.88, "ytick.labelsize": size * 0.88, "legend.fontsize": size * 0.88,
        "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
        "axes.linewidth": size * 0.08, "lines.linewidth": size * 0.17, "lines.markersize": size * 0.42,
        "axes.prop_cycle": cycler(color=list(PALETTE)), "axes.grid": False, "grid.color": "#E6E6E6",
        "legend.frameon": False, "image.cmap": "viridis", "image.interpolation": "nearest",
        "svg.fonttype": "path", "pdf.fonttype": 42, "text.usetex": False, "axes.unicode_minus": True,
    }  # fmt: skip


@contextmanager
def theme(kind: Kind = "paper", *, captions: bool = True) -> Iterator[None]:
    """Draw inside this context to get the look of ``kind``; the settings found before are put back after it.

    Args:
        kind: ``"paper"`` is one column (3.3 in), ``"slide"`` a projected page, ``"page"`` the report.
        captions: False leaves the line under the figure out, which says model, n and definition.
    """
    with mpl.rc_context(settings(kind)):
        tokens = _ACTIVE.set(kind), _CAPTIONS.set(captions)
        try:
            yield
        finally:
            _ACTIVE.reset(tokens[0])
            _CAPTIONS.reset(tokens[1])
            # A notebook's first figure loads its backend in here, which makes figures interactive; that must stay.
            interactive = mpl.is_interactive()
    mpl.interactive(interactive)


def active() -> bool:
    """Say whether a theme is active."""
    return _ACTIVE.get() is not None


class Look(TypedDict, total=False):
    """What every figure takes beside its own arguments.

    Attributes:
        caption: False leaves the line under a new figure out, which says model, n and definition.
        size: ``"paper"`` is one column (3.3 in), ``"page"`` the width of a page, ``"slide"`` a projected page; letters
            and lines follow. Left out: the theme that is active, else one column.
    """

    caption: bool
    size: Kind


def with_look(draw: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a figure, with the arguments of :class:`Look` by name."""
    signature = inspect.signature(draw)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    if len(own) == len(signature.parameters):
        return signature
    look = [
        inspect.Parameter("caption", inspect.Parameter.KEYWORD_ONLY, default=True, annotation="bool"),
        inspect.Parameter("size", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Kind | None"),
    ]
    return signature.replace(parameters=[*own, *look])


def themed(draw: Callable[P, Axes]) -> Callable[P, Axes]:
    """Wrap a drawing function in the theme that is active or asked for by ``size``; its arguments are checked.

    What fails half-way leaves no figure behind, and the axes that were given as far as it came.
    """
    name, signature = getattr(draw, "__name__", "figure"), with_look(draw)

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Axes:
        signature.bind(*args, **kwargs)  # Python says what is missing or unknown
        size, captions = kwargs.pop("size", None), bool(kwargs.pop("caption", True))
        if size is not None and kwargs.get("ax") is not None:
            raise SchemaError(f"{name}(size={size!r}, ax=): axes that are given have a size. Leave one of them out.")
        with look(size, captions), no_figure_left():
            return draw(*args, **kwargs)

    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    return checked(SchemaError)(wrapper)


@contextmanager
def look(size: Any = None, captions: bool = True, otherwise: Kind = "paper") -> Iterator[None]:
    """Draw inside this context in the size asked for, else as the theme around it says, else in that of ``otherwise``.

    Args:
        size: a theme, or None.
        captions: False: without captions; True: as the theme around it says.
        otherwise: the theme where none is active.
    """
    captions = captions and _CAPTIONS.get()
    if size is not None or not active():
        with theme(otherwise if size is None else size, captions=captions):
            yield
        return
    token = _CAPTIONS.set(captions)
    try:
        yield
    finally:
        _CAPTIONS.reset(token)


@contextmanager
def no_figure_left() -> Iterator[None]:
    """Close the figures that were opened inside, should what happens inside fail."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    try:
        yield
    except BaseException:
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)
        raise


def thin() -> float:
    """Return the width of a reference line in the theme that is active."""
    return 0.65 * float(mpl.rcParams["lines.linewidth"])


MANY = 2_000
"""Marks from which a figure holds a picture of them: drawn one by one, 180,000 ticks made a page of 30 MB."""


def dot(scale: float = 1.0) -> float:
    """Return the area of a dot in the theme that is active, for ``scatter(s=...)``."""
    return scale * float(mpl.rcParams["lines.markersize"]) ** 2


def axes_for(array: xr.DataArray, ax: Axes | None, *, height: float = 1.0, projection: str | None = None) -> Axes:
    """Return ``ax``, or axes on a new figure that carries the caption of ``array``.

    Args:
        array: what will be drawn; its attributes fill the caption of a new figure.
        ax: axes to draw on. Their figure is left without a caption of ours: it may hold other panels.
        height: height of a new figure, as a multiple of the theme's.
        projection: ``"3d"`` for a picture in space.
    """
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    width, tall = mpl.rcParams["figure.figsize"]
    kwargs = {} if projection is None else {"projection": projection}
    figure, new = plt.subplots(figsize=(width, tall * height), subplot_kw=kwargs)
    caption(figure, array)
    return new


@checked(SchemaError)
def caption_text(source: xr.Dataset | xr.DataArray, *, definition: str | None = None) -> str:
    """Say in one line what was measured: model, number of prompts, definition.

    Args:
        source: a reading, or an array with any of the attributes ``model_id``, ``n_prompts``, ``meaning``,
            ``definition`` (metrics write the last two).
        definition: replaces the ``definition`` attribute.
    """
    attrs: Mapping[str, Any] = source.attrs
    parts = []
    if attrs.get("model_id"):
        parts.append(f"model {attrs['model_id']}")
    count = attrs.get("n_prompts", source.sizes.get("prompt"))
    if count is not None:
        parts.append(f"n = {int(count)} prompt{'' if int(count) == 1 else 's'}")
    said = definition or _definition(attrs) or getattr(source, "name", None)
    if said:
        parts.append(str(said))
    return "; ".join(parts)


def _definition(attrs: Mapping[str, Any]) -> str:
    """Say what a metric's result means, with the name of its definition, from the attributes that metrics write."""
    name, meaning = str(attrs.get("definition", "")), str(attrs.get("meaning", ""))
    if meaning:
        return f"{meaning} ({name})" if name else meaning
    return name or str(attrs.get("long_name", ""))


@checked(SchemaError)
def described(array: xr.DataArray, source: xr.Dataset | xr.DataArray, definition: str = "") -> xr.DataArray:
    """Return ``array`` with the attributes that its caption needs, taken from the reading it was made of.

    Args:
        array: what will be drawn.
        source: the reading.
        definition: what was measured, in words; left as the metric wrote it if empty.
    """
    attrs = dict(array.attrs) | {"model_id": source.attrs.get("model_id", "")}
    if definition:
        attrs = {k: v for k, v in attrs.items() if k != "meaning"} | {"definition": definition}
    count = source.sizes.get("prompt", source.attrs.get("n_prompts"))
    if count is not None:
        attrs["n_prompts"] = int(count)
    return array.assign_attrs(attrs)


@checked(SchemaError)
def caption(figure: Figure | Axes, source: xr.Dataset | xr.DataArray | str, *, definition: str | None = None) -> str:
    """Write the caption line under a figure, wrapped to its width, and return it (empty: nothing is known)."""
    from sinkscope.plot.labels import plain

    target = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    text = source if isinstance(source, str) else caption_text(source, definition=definition)
    if not text or not isinstance(target, Figure) or not _CAPTIONS.get():
        return text
    size = float(mpl.rcParams["font.size"]) * 0.8
    columns = int(target.get_size_inches()[0] * 72 / (size * 0.56))
    lines = "\n".join(textwrap.wrap(plain(text), columns))
    target.supxlabel(lines, x=0.01, ha="left", fontsize=size, color="#555555")
    return text
