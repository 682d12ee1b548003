"""What an edit is: a frozen value that says what to change, and writes it into attention calls and residual states.

To add one, subclass :class:`AttentionEdit` and override ``change_attention``, or :class:`ResidualEdit` and override
``change_residual``; an edit that needs both subclasses :class:`Edit`. Everything else (which layers and heads, padding,
caches, generation, sweeps, the effect check, JSON, the text form) is done by these classes and by
:mod:`sinkscope.engine.plan`, which know no edit by name.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float

from sinkscope.edits.call import EditedCall
from sinkscope.edits.fields import EDITS, EditFields
from sinkscope.edits.selectors import heads_of, layers_of, tokens_of
from sinkscope.edits.stream import EditedStream
from sinkscope.edits.values import HeadMap, show
from sinkscope.errors import EditError, did_you_mean
from sinkscope.models.backends.base import Tower, bare, streams_elsewhere
from sinkscope.references import Reference

__all__ = ["EDITS", "AttentionEdit", "Edit", "Hidden", "ResidualEdit"]

Hidden = Float[torch.Tensor, "batch key d_model"]


@dataclass(frozen=True, repr=False)
class Edit(EditFields, abstract=True):
    """Base of all edits."""

    conditional: ClassVar[bool] = False
    """True where the edit acts only on what it finds: it may find nothing, and then records it."""

    allow_empty: bool = field(default=False, kw_only=True)
    """Let the edit select nothing: without it an empty selection is an error."""
    papers: ClassVar[tuple[str | Reference, ...]] = ()
    """Papers it comes from: their keys in :mod:`sinkscope.references`, or references of one's own."""

    def _repr_html_(self) -> str:
        said = (type(self).__doc__ or "").strip().partition("\n")[0].replace("``", "")
        rows = "".join(
            f"<tr><th>{html.escape(f.name)}</th><td>{html.escape(show(getattr(self, f.name)))}</td></tr>"
            for f in fields(self)
            if f.name != "allow_empty" or self.allow_empty
        )
        return f"<div><code>{html.escape(repr(self))}</code><br>{html.escape(said)}</div><table>{rows}</table>"

    @property
    def identity(self) -> bool:
        """True where the edit changes nothing by definition (gamma = 1): it is left out of the run."""
        return False

    def check(self, tower: Tower) -> None:
        """Refuse layers, heads, sites or dimensions that this tower does not have.

        Raises:
            EditError: says which there are.
        """

    def notes(self, tower: Tower) -> tuple[str, ...]:
        """Return what a reader should know of this edit in ``tower``; it joins the reading's ``edit_notes``."""
        return ()

    def layers_in(self, tower: Tower) -> tuple[int, ...]:
        """Return the layers of ``tower`` whose attention calls this edit changes, in order."""
        return ()

    def heads_in(self, layer: int, total: int) -> tuple[int, ...]:
        """Return the heads of ``layer``, which has ``total``, on which this edit acts."""
        return tuple(range(total))

    def change_attention(self, call: EditedCall) -> None:
        """Write this edit into one attention call, by the primitives of ``call``."""

    def sites_in(self, tower: Tower) -> tuple[str, ...]:
        """Return the residual sites of ``tower`` at which this edit is asked."""
        return ()

    def change_residual(self, hidden: Hidden, stream: EditedStream) -> Hidden | None:
        """Return the residual stream as it becomes at one site, a new tensor, or None to leave it as it is."""
        return None

    def watch_residual(self, hidden: Hidden, stream: EditedStream) -> None:
        """Look at the residual stream at one site after all edits have changed it, and remember what matters."""


@dataclass(frozen=True, repr=False)
class AttentionEdit(Edit, ABC, abstract=True):
    """An edit of attention calls: in which layers, heads and query rows.

    ``layers`` is None (all), a number, a range, a list, or a boolean DataArray over (layer). ``heads`` is None (all), a
    list for every named layer, pairs (layer, head), a mapping ``{layer: [heads]}``, or a boolean DataArray over
    (layer, head). ``queries`` selects rows as ``keys`` selects keys; None means all. A field called ``keys`` is taken
    as a selector too.
    """

    layers: Any = field(default=None, kw_only=True)
    heads: Any = field(default=None, kw_only=True)
    queries: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Bring every selector into its hashable form.

        Raises:
            EditError: a malformed selector.
        """
        self._set("layers", layers_of(self.layers, self._asked("layers")))
        self._set("heads", heads_of(self.heads, self._asked("heads")))
        if self.queries is not None:
            self._set("queries", tokens_of(self.queries, self._asked("queries")))
        if "keys" in {f.name for f in fields(self)}:
            self._set("keys", tokens_of(getattr(self, "keys"), self._asked("keys")))  # noqa: B009

    def check(self, tower: Tower) -> None:
        """Refuse layers and heads that ``tower`` does not have."""
        self._check_layers(tower)
        if tower.cross and getattr(self, "keep_self", False):
            raise EditError(
                f"{self._asked('keep_self')}: in cross-attention no query has a key of its own. Leave it out."
            )
        for layer in self.layers_in(tower):
            total = min(site.heads for site in tower.sites_of(layer))
            if any(not 0 <= head < total for head in self.heads_in(layer, total)):
                raise EditError(
                    f"{self._asked('heads')}: layer {layer} has heads 0..{total - 1}. Use heads=range({total})."
                )

    def _check_layers(self, tower: Tower) -> None:
        count, attend = tower.depth, sorted({site.layer for site in tower.attention})
        named: set[int] = set(self.layers or ()) | (set(self.heads) if isinstance(self.heads, HeadMap) else set())
        if wrong := sorted(named - set(range(count))):
            name = "layers" if set(self.layers or ()) - set(range(count)) else "heads"
            found = f"this model has layers 0..{count - 1}"
            hint = f"Use layers=range({count})." if name == "layers" else f"Layer {wrong[0]} is not among them."
            raise EditError(f"{self._asked(name)}: {found}. {hint}")
        if wrong := sorted(named - set(attend)):
            name = "layers" if wrong[0] in (self.layers or ()) else "heads"
            raise EditError(
                f"{self._asked(name)}: {bare(tower, wrong[0])}. Blocks with attention are {show(tuple(attend))}"
                f"{'' if tower.cross else '; the others can be edited with SetActivations'}."
            )

    def layers_in(self, tower: Tower) -> tuple[int, ...]:
        """Return the layers of ``tower`` in which this edit acts."""
        attend = sorted({site.layer for site in tower.attention})
        named = [layer for layer in attend if self.layers is None or layer in self.layers]
        if isinstance(self.heads, HeadMap):
            return tuple(layer for layer in named if self.heads.get(layer))
        return () if self.heads == () else tuple(named)

    def heads_in(self, layer: int, total: int) -> tuple[int, ...]:
        """Return the heads of ``layer`` on which this edit acts."""
        if self.heads is None:
            return tuple(range(total))
        return self.heads.get(layer, ()) if isinstance(self.heads, HeadMap) else self.heads

    @abstractmethod
    def change_attention(self, call: EditedCall) -> None:
        """Write this edit into one attention call, by the primitives of ``call``."""

    def _refuse_queries(self, why: str) -> None:
        if self.queries is not None:
            raise EditError(f"{self._asked('queries')}: {why}.")


@dataclass(frozen=True, repr=False)
class ResidualEdit(Edit, ABC, abstract=True):
    """An edit of the residual stream at one site (``"embed"``, ``"3.mid"``, ``"3.post"``), at selected tokens."""

    site: str
    keys: Any = field(default="first", kw_only=True)

    def __post_init__(self) -> None:
        """Bring the selector into its hashable form.

        Raises:
            EditError: a malformed selector, or a site that is no name.
        """
        site: Any = self.site
        if not isinstance(site, str):
            raise EditError(f"{self._asked('site')}: a site is a name such as '1.post'.")
        self._set("keys", tokens_of(self.keys, self._asked("keys")))

    def check(self, tower: Tower) -> None:
        """Refuse a site that ``tower`` does not have, or where a change could not be carried on."""
        if tower.cross:
            raise EditError(
                f"{self._asked('site')}: cross-attention has no residual stream of its own. Change "
                f"{streams_elsewhere(tower)}."
            )
        if self.site not in tower.site_names:
            names = tower.site_names
            shown = list(names) if len(names) < 8 else f"{', '.join(names[:4])}, ... {names[-1]}"
            raise EditError(
                f"{self._asked('site')}: there is no such residual site. Sites are {shown}."
                f"{did_you_mean(self.site, names)}"
            )
        if any(site.post_norm for site in tower.residual if site.name == self.site):
            raise EditError(
                f"{self._asked('site')}: this model normalises behind each sublayer, so a change between attention and "
                f"MLP cannot be carried on. Use {self.site.replace('.mid', '.post')!r}."
            )
        if any(site.carry == "never" for site in tower.residual if site.name == self.site):
            raise EditError(
                f"{self._asked('site')}: behind self-attention this decoder reads the stream in two branches, and a "
                f"change of one is not a change of the stream. Use {self.site.replace('.mid', '.post')!r}."
            )

    def sites_in(self, tower: Tower) -> tuple[str, ...]:
        """Return the site."""
        return (self.site,)

    @abstractmethod
    def change_residual(self, hidden: Hidden, stream: EditedStream) -> Hidden | None:
        """Return the residual stream as it becomes at the site, a new tensor, or None to leave it as it is."""
