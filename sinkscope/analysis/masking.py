"""What masking visual sinks costs, beside as many random and as many relevant visual tokens (Kang et al. 2025).

Used by ``analyses/kang2025/mask_visual_sinks.py`` and by the card of a model's further seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope import metrics
from sinkscope.analysis.common import highest_tokens, visual_sink_layers, visual_tau
from sinkscope.edits import MaskKeys
from sinkscope.engine.run import run
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.models.handle import Model
from sinkscope.probes import SinkDims
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import scene_questions

ARMS = ("highest phi", "random", "relevant")

NOTHING = 0.1
"""Part of what masking relevant tokens costs that counts as no cost. This project's own; set
before the run that is reported, after a look at twelve prompts."""


def costs_nothing(low: float, high: float, relevant: float) -> bool | None:
    """Return whether a loss with this interval is under a part (``NOTHING``) of the relevant tokens'; None: unseen."""
    most = NOTHING * relevant
    return True if high < most else False if low > most else None


def _where_they_stand(model: Model) -> tuple[tuple[int, ...], float, str, int | None]:
    """Sink dimensions, tau and its source, and the layer at whose input most visual tokens pass; of other prompts.

    The layer is None where fewer than one a picture passes.
    """
    other = scene_questions(model, 32, ("colour", "shape", "place"), seed=7).prompts
    dims, _ = sink_dims_or_largest(model, other)
    ds = run(model, other, [SinkDims(dims)])
    tau, source = visual_tau(model, ds)
    layers = list(range(1, int(model.config.get_text_config().num_hidden_layers)))
    stand = visual_sink_layers(metrics.at_block_inputs(ds["phi"], layers), ds["token_role"] == "image", tau)
    return tuple(dims), tau, source, stand[0] if stand else None


def _masks(phi: xr.DataArray, about: xr.DataArray, count: Sequence[int], draws: int) -> list[list[xr.DataArray]]:
    """Which keys each arm hides, ``count`` in each prompt; the random arm has several draws."""
    image = (phi["token_role"] == "image").assign_coords(token_role=phi["token_role"])
    sinks = highest_tokens(phi, image, count)
    drawn = metrics.matched_controls(sinks, 0, draws, roles="image")
    relevant = highest_tokens(about, image, count)
    return [[sinks], [drawn.isel(draw=i) if "draw" in drawn.dims else drawn for i in range(draws)], [relevant]]


def masking_damage(model: Model, n: int, counts: list[int], draws: int) -> xr.Dataset:
    """Return scores of the right answer with visual tokens hidden from the rows after the picture.

    Visual sinks are the visual tokens that pass tau at the input of the layer where most do, which other prompts
    decide; prompts without one are left out. Where fewer than one a picture passes, those with the highest phi at half
    the depth stand for them.

    Args:
        model: a vision-language model.
        n: prompts; 96 at most where fewer than one visual token a picture passes.
        counts: how many tokens are masked there.
        draws: random sets of as many visual tokens, whose scores are averaged.

    Returns:
        ``correct`` and ``log_probability``, dims arm, masked (0 and how many) and prompt; ``passing`` (prompt), the
        visual tokens over tau; attributes ``tau``, ``tau_source`` and ``layer``.
    """
    dims, tau, source, layer = _where_they_stand(model)
    shapes = scene_questions(model, n if layer is not None else min(n, 96), ("colour", "shape", "place"))
    at = int(model.config.get_text_config().num_hidden_layers) // 2 if layer is None else layer
    ds = run(model, shapes.prompts, [SinkDims(dims)])
    phi = metrics.at_block_inputs(ds["phi"], [at]).isel(layer=0)
    over = ((phi >= tau) & (ds["token_role"] == "image")).sum("key").values
    about = shapes.covered(ds, "about") + 1e-3 * shapes.covered(ds)
    rows = np.flatnonzero(over) if layer is not None else np.arange(len(over))
    examples = shapes.examples.subset(rows.tolist())
    kept = {"prompt": rows, "key": slice(max(len(ids) for ids in examples.prompts.ids))}
    phi, about, over = phi.isel(kept), about.isel(kept), over[rows]
    tried = {float(count): [count] * len(rows) for count in sorted(counts)}
    if layer is not None:
        tried = {round(float(over.mean()), 1): over.tolist()}
    plain = answer_score(model, examples)
    columns = [xr.concat([plain] * len(ARMS), "arm")]
    for count in tried.values():
        row: list[xr.Dataset] = []
        for keys in _masks(phi, about, count, draws):
            edits = [MaskKeys(_own(one), queries="after_image", allow_empty=True) for one in keys]
            each: list[xr.Dataset] = [answer_score(model, examples, [edit]) for edit in edits]
            row.append(xr.concat(each, "draw", combine_attrs="override").mean("draw", keep_attrs=True))
        columns.append(xr.concat(row, "arm", combine_attrs="override"))
    joined = xr.concat(columns, "masked", combine_attrs="override")
    joined = joined.assign_coords(masked=[0.0, *tried], arm=list(ARMS))
    joined["passing"] = ("prompt", over)
    joined.attrs |= {"tau": tau, "tau_source": source, "layer": at}
    return joined.transpose("arm", "masked", "prompt")


def _own(keys: xr.DataArray) -> xr.DataArray:
    """The mask for prompts that are counted from 0."""
    return keys.reset_coords(drop=True).assign_coords(prompt=range(keys.sizes["prompt"]))
