"""What a sweep runs over: named lists of edits, or a grid of one edit; and where each variant starts to differ."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.arguments import is_iterable
from sinkscope.edits.base import Edit
from sinkscope.edits.text import dumps
from sinkscope.edits.values import show
from sinkscope.errors import EditError, did_you_mean
from sinkscope.models.backends.base import Tower
from sinkscope.registry import kebab

DIMENSIONS = {
    "layers": "edit_layer", "heads": "edit_head", "keys": "edit_keys", "queries": "edit_queries", "dims": "edit_dim",
    "site": "edit_site",
}  # fmt: skip
"""Dimension that a field of an edit makes in a grid, where the field's own name would be taken for the reading's."""

BASELINE = "baseline"
"""Label of the run without an edit."""


class EditGrid(dict[str, tuple[Edit, ...]]):
    """Variants that form a product: a mapping like any other, which also knows its axes.

    ``axes`` gives the dimensions of the result in order, and each one's labels.
    """

    def __init__(self, variants: Mapping[str, tuple[Edit, ...]], axes: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(variants)
        self.axes = {dim: list(labels) for dim, labels in axes.items()}


def grid(edit: Edit | type[Edit], **axes: Iterable[Any]) -> EditGrid:
    """Every combination of some fields of an edit, for :func:`sinkscope.sweep`.

    ``edit`` is an edit whose other fields stay as they are, or a class; each keyword is a field with the values that it
    shall take. The result of the sweep has one dimension per field, in the order given: ``gamma`` and other numbers by
    their own name, ``layers`` as ``edit_layer`` and ``heads`` as ``edit_head`` (``layer`` and ``head`` are those of the
    readings), ``keys`` as ``edit_keys``, ``dims`` as ``edit_dim``, ``site`` as ``edit_site``. A value may itself be a
    list, such as a group of layers; its label is then text.

    Raises:
        EditError: no axis, an empty or repeated one, no such field, or a value that the edit refuses.
    """
    cls = edit if isinstance(edit, type) else type(edit)
    if not (isinstance(cls, type) and issubclass(cls, Edit)):
        raise EditError(
            f"grid({edit!r}): this is no edit. Give an edit such as ScaleKeys, and fields with their values."
        )
    known = [f.name for f in fields(cls)]
    listed = {name: list(values) if is_iterable(values) else [values] for name, values in axes.items()}
    if not listed:
        raise EditError(f"grid({cls.__name__}): no axis. Name fields with lists of values, such as gamma=[0.5, 2.0].")
    for name, values in listed.items():
        if name not in known:
            raise EditError(
                f"grid({cls.__name__}, {name}=...): there is no such field. Its fields are {known}."
                f"{did_you_mean(name, known)}"
            )
        if not values:
            raise EditError(f"grid({cls.__name__}, {name}=[]): the axis is empty. Give at least one value.")
    labels = {name: _labels(cls, name, values) for name, values in listed.items()}
    variants = {}
    for place in itertools.product(*(range(len(values)) for values in listed.values())):
        given = {name: values[i] for (name, values), i in zip(listed.items(), place, strict=True)}
        words = [f"{name}={labels[name][i]}" for name, i in zip(listed, place, strict=True)]
        variants[f"{kebab(cls.__name__)} {' '.join(words)}"] = (_made(edit, cls, given),)
    return EditGrid(variants, {DIMENSIONS.get(name, name): values for name, values in labels.items()})


def _made(edit: Edit | type[Edit], cls: type[Edit], given: dict[str, Any]) -> Edit:
    if not isinstance(edit, type):
        return dataclasses.replace(edit, **given)
    absent = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    absent = [name for name in absent if name not in given]
    if absent:
        raise EditError(
            f"grid({cls.__name__}): {absent[0]} must be given. Add {absent[0]}=[...], or give an edit, not a class."
        )
    return cls(**given)


def _labels(cls: type[Edit], name: str, values: list[Any]) -> list[Any]:
    plain = [v.item() if isinstance(v, np.generic | np.ndarray) and v.ndim == 0 else v for v in values]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in plain)
    labels = plain if numbers else [_word(v) for v in plain]
    if len(set(labels)) < len(labels):
        raise EditError(f"grid({cls.__name__}, {name}=...): the labels {labels} repeat. Give each value once.")
    return labels


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, range) and value.step == 1:
        return f"{value.start}:{value.stop}"
    if isinstance(value, xr.DataArray):
        return f"<{int(value.sum())} selected>"
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return ",".join(str(v) for v in value)
    return show(value)


@dataclass(frozen=True)
class Variant:
    """One list of edits of a sweep. ``start`` is the first block it changes; None where it changes nothing."""

    label: str
    edits: tuple[Edit, ...]
    start: int | None

    @property
    def json(self) -> str:
        """The edits as text."""
        return dumps(self.edits)


def resolve(variants: Mapping[str, Any], tower: Tower) -> list[Variant]:
    """Check the variants and find where each starts to differ from the run without edits.

    Raises:
        EditError: nothing to sweep, a label that is no text, or something that is no edit or does not fit ``tower``.
    """
    if not isinstance(variants, Mapping) or not variants:
        raise EditError(
            f"sweep: variants are a mapping of labels to lists of edits, got {type(variants).__name__} "
            f"{'without an entry' if isinstance(variants, Mapping) else ''}. "
            "Write {'masked': [MaskKeys('first')]}, or use sinkscope.grid."
        )
    found = []
    for label, edits in variants.items():
        if not isinstance(label, str) or not label:
            raise EditError(f"sweep: the label {label!r} is no text. Labels name the variants in the reading.")
        listed = tuple(edits) if is_iterable(edits) else (edits,)
        for edit in listed:
            if not isinstance(edit, Edit):
                raise EditError(
                    f"sweep: variant {label!r} holds {edit!r}, which is no edit. Edits are values such as "
                    "sinkscope.MaskKeys('first')."
                )
            edit.check(tower)
        found.append(Variant(label, listed, first_block(listed, tower)))
    return found


def first_block(edits: Sequence[Edit], tower: Tower) -> int | None:
    """Return the first block whose input, attention or output some edit changes; None where none does."""
    blocks, starts = tower.depth, list[int]()
    for edit in edits:
        if not (edit.identity or edit.selects_nothing):
            starts += [*edit.layers_in(tower), *(_block_of_site(site, blocks) for site in edit.sites_in(tower))]
    return min(starts, default=None)


def _block_of_site(site: str, blocks: int) -> int:
    if site == "embed":
        return 0
    layer, place = site.split(".")
    return min(int(layer) + (place == "post"), blocks - 1)


def edits_json(variants: Sequence[Variant]) -> str:
    """All edits of a sweep, for the reading's attributes: a JSON object from label to list of edits."""
    return json.dumps({variant.label: [edit.to_dict() for edit in variant.edits] for variant in variants})
