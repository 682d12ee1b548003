"""Maps that modules hand on inside a model which returns none of its text's, found in a trial with an image (BLIP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite, Tower
from sinkscope.models.backends.discovery import no_cache, pictured_towers, trial_inputs
from sinkscope.models.backends.pictured import FILLER, pictured_inputs
from sinkscope.models.backends.trial import ModuleCall, Record, Seen, watched
from sinkscope.models.backends.verify import eager_attention

Map = Float[torch.Tensor, "batch head query key"]

Collect = Callable[[AttentionSite, Map], None]


def find_inside(model: torch.nn.Module) -> dict[str, Tower]:
    """Find the towers of a model of text and images by the maps that its modules hand on.

    Raises:
        UnsupportedModelError: it runs on no form of an image, its maps are of other tokens than the text's, or it
            computes something else each time.
    """
    start = int(trial_inputs(model)[0].get("input_ids", torch.zeros(1, 1, dtype=torch.long))[0, 0])
    for inputs in pictured_inputs(model, [start] * FILLER):
        try:
            record, again = _watch(model, inputs), _watch(model, inputs)
        except Exception:  # another form, or none
            continue
        if record is None or again is None:
            continue
        if any(not torch.equal(a, b) for a, b in zip(record[1], again[1], strict=True)):
            raise UnsupportedModelError(
                f"On the same text and image {type(model).__name__} attends otherwise in every pass (ViLT draws the "
                "order of an image's patches at random), so which token is which patch is not known. Take its maps "
                "from the model itself (output_attentions=True)."
            )
        return pictured_towers(model, record[0], inputs["input_ids"].shape[1])
    raise UnsupportedModelError("Its modules hand on no maps either.")


def _watch(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[Record, list[Map]] | None:
    """Record a run, and the maps of its modules as its attention calls; None where there are none."""
    record = Record({id(module): path for path, module in model.named_modules()})
    maps: list[Map] = []
    places: set[int] = set()

    def made(entry: ModuleCall, output: Any) -> None:
        part = _part_of(output)
        found = None if part is None else _parts(output)[part]
        if found is None or found.untyped_storage().data_ptr() in places:
            return  # an outer module hands on what an inner one has made
        places.add(found.untyped_storage().data_ptr())
        maps.append(found)
        record.calls.append(_seen(model, entry, found))

    with torch.no_grad(), eager_attention(model), watched(model, record, made):
        model(**inputs, **no_cache(model))
    return (record, maps) if maps else None


def _seen(model: torch.nn.Module, entry: ModuleCall, weights: Map) -> Seen:
    config: Any = model.config
    heads, rows, keys = weights.shape[1:]
    width = int(getattr(config.get_text_config(), "hidden_size", heads))
    causal = rows == keys and bool((weights.triu(1) == 0).all())
    return Seen(entry, heads, heads, width // heads, rows, causal, False, False, True, keys)


def _parts(output: Any) -> list[Any]:
    if isinstance(output, torch.Tensor):
        return [output]
    return list(output.values()) if isinstance(output, Mapping) else list(output) if isinstance(output, tuple) else []


def _part_of(output: Any) -> int | None:
    """Which part of what a module gives is a map: weights of queries on keys, each row a whole."""
    for index, part in enumerate(_parts(output)):
        if isinstance(part, torch.Tensor) and part.ndim == 4 and part.is_floating_point():
            rows = part.sum(-1)
            if bool((part >= 0).all()) and bool(((rows - 1).abs() < 1e-3).all()) and part.shape[2] > 1:
                return index
    return None


@contextmanager
def listening(model: torch.nn.Module, tower: Tower, collect: Collect) -> Iterator[None]:
    """While the model runs inside, hand over the map of each attention site of ``tower`` as soon as it is made."""
    sites: dict[str, list[AttentionSite]] = {}
    for site in tower.attention:
        sites.setdefault(site.path, []).append(site)
    handles: list[Any] = []
    for path, own in sites.items():
        turns = iter(own)

        def hear(_module: torch.nn.Module, _args: Any, output: Any, turns: Iterator[AttentionSite] = turns) -> None:
            part, site = _part_of(output), next(turns, None)
            if part is None or site is None:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: a module that hands on its map in the trial does not do so now."
                )
            collect(site, _parts(output)[part])

        handles.append(model.get_submodule(path).register_forward_hook(hear))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
