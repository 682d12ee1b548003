"""Which heads matter for what: the first-order effect of scaling a key in every head, from one backward pass.

Scaling the attention weight of a key by gamma is a bias log gamma on its logit (Han et al. 2025), so the derivative of
a metric with respect to log gamma, taken at gamma 1, predicts what a small scaling in one head does. One backward pass
gives it for all layers and heads. The exact effect takes one pass per head; here both stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from scipy import stats

from sinkscope.edits.keys import ScaleKeys
from sinkscope.edits.text import dumps
from sinkscope.engine.effect import check_edits
from sinkscope.engine.plan import Plan
from sinkscope.engine.reading import provenance
from sinkscope.engine.run import batches, check_request, find_tower
from sinkscope.engine.sweep import sweep
from sinkscope.errors import EditError, ProbeError
from sinkscope.methods.base import MethodResult
from sinkscope.metrics import rank_correlation
from sinkscope.models.backends.base import Instruments, Output, Tower
from sinkscope.probes.output import TokenLoss
from sinkscope.prompts import Batch, Prompts
from sinkscope.registry import method

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model

RESAMPLES = 999

Metric = Callable[[Output, Batch], Float[torch.Tensor, " batch"]]
"""Takes a pass (final hidden state, logits) and its batch; gives one number per prompt that carries the gradient."""


@dataclass(frozen=True)
class HeadProfileSettings:
    """What a head profile is of.

    Attributes:
        keys: which keys are scaled, as in :class:`sinkscope.ScaleKeys`.
        metric: ``"token_loss"`` (mean over the prompt's tokens, decoders), or a function of a pass and its batch that
            gives one differentiable number per prompt.
        exact: also scale the keys by this gamma in one head after the other and report how well the estimate ranks the
            heads.
    """

    keys: Any = "first"
    metric: str | Metric = "token_loss"
    exact: float | None = None


@dataclass(frozen=True, eq=False)
class HeadProfile(MethodResult):
    """What :func:`profile_heads` found.

    Attributes:
        found: ``first_order`` (prompt, layer, head), the derivative of the metric with respect to log gamma at gamma 1,
            NaN where a layer has fewer heads; ``metric`` (prompt), the metric without an edit. With ``exact`` also
            ``predicted`` (first_order x log gamma) and ``effect`` (the metric at that gamma less the metric without an
            edit), and of their means over prompts the Spearman ``rank_correlation`` over heads with ``rank_low`` and
            ``rank_high`` (95 per cent, bootstrap over prompts; NaN for one prompt), ``rank_p_value`` and ``rank_n``
            (heads).
        settings: what was fixed beforehand.
    """

    reference: ClassVar[tuple[str, ...]] = ("han2025",)

    found: xr.Dataset
    settings: HeadProfileSettings

    def table(self) -> pd.DataFrame:
        """Return one row per head, largest derivative first: the means over prompts and n."""
        names = [name for name in ("first_order", "predicted", "effect") if name in self.found]
        rows = self.found[names].mean("prompt").to_dataframe().dropna(subset=["first_order"])
        order = np.argsort(-rows["first_order"].abs().to_numpy(), kind="stable")
        return rows.iloc[order].assign(n=self.found.sizes["prompt"]).reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the mean derivative of every head."""
        from sinkscope import plot

        name = f"d {self.found.attrs['metric']} / d log gamma"
        says = f"{name} at gamma 1, mean over prompts; below 0: more attention would lower it"
        mean = plot.described(self.found["first_order"].mean("prompt"), self.found, says).assign_attrs(long_name=name)
        return plot.effect_map(mean, title="First-order effect of each head", ax=ax)


@method()
def profile_heads(model: Model, prompts: Prompts, settings: HeadProfileSettings | None = None) -> HeadProfile:
    """Estimate what scaling a key in each head does to a metric, from one backward pass per prompt.

    Args:
        model: a model that the transformers backend drives.
        prompts: prompts; each gives its own estimate.
        settings: what is fixed beforehand.

    Raises:
        EditError: ``exact`` is no gamma other than 1, or ``keys`` select nothing in these prompts.
        ProbeError: ``"token_loss"`` of a model that predicts no next token, or a metric without a gradient.
    """
    chosen = settings or HeadProfileSettings()
    keys, metric, exact = chosen.keys, chosen.metric, chosen.exact
    tower = find_tower(model, None)
    check_request(model, prompts, [TokenLoss()] if metric == "token_loss" else [], tower, 1)
    measure = _token_loss if metric == "token_loss" else metric
    if not callable(measure):
        raise ProbeError(f"profile_heads(metric={metric!r}): use 'token_loss' or a function of a pass and its batch.")
    template = ScaleKeys(1.0, keys=keys)
    check_edits([template], tower)
    if exact is not None and ScaleKeys(exact, keys=keys).identity:
        raise EditError(
            "profile_heads(exact=1.0): gamma 1 changes nothing. Give the gamma to compare with, such as 0.5."
        )
    with model.evaluating():
        rows = [_gradient(model, tower, batch, template, measure) for batch in batches(prompts, 1, model.device)]
    plain = np.array([value for value, _ in rows], dtype=np.float32)
    data = {
        "first_order": (("prompt", "layer", "head"), np.stack([gradient for _, gradient in rows])),
        "metric": ("prompt", plain),
    }
    labels = {"prompt": np.arange(len(prompts)), "layer": range(tower.depth), "head": np.arange(_heads(tower))}
    ds = xr.Dataset(data, coords=labels)
    ds.attrs = provenance(model, tower, prompts, (), dumps([template]), {"blockwise"})
    ds.attrs["metric"] = metric if isinstance(metric, str) else getattr(metric, "__name__", "function")
    return HeadProfile(ds if exact is None else _with_exact(ds, model, prompts, template, measure, exact), chosen)


def _heads(tower: Tower) -> int:
    return max(site.heads for site in tower.attention)


def _token_loss(output: Output, batch: Batch) -> Float[torch.Tensor, " batch"]:
    ids, real = batch.inputs["input_ids"], batch.real
    assert output.logits is not None
    logs = output.logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    target = real[:, :-1] & real[:, 1:]
    return -(logs * target).sum(-1) / target.sum(-1)


def _gradient(
    model: Model, tower: Tower, batch: Batch, template: ScaleKeys, metric: Metric
) -> tuple[float, Float[np.ndarray, "layer head"]]:
    """The metric of one prompt and its derivative with respect to log gamma in each head."""
    logs = torch.zeros(tower.depth, _heads(tower), device=model.device, requires_grad=True)
    plan = Plan([template], tower, None, batch, values={0: logs})
    with torch.enable_grad():
        wanted = None if model.model.get_output_embeddings() is None else "all"
        output = model.backend.forward(batch.inputs, tower, Instruments(edits=plan.call_edits), wanted)
        value = metric(output, batch)
        if value.shape != (1,) or not value.requires_grad:
            raise ProbeError(
                f"profile_heads: the metric gave a tensor of shape {tuple(value.shape)} "
                f"{'with' if value.requires_grad else 'without'} a gradient for one prompt. Give one number, "
                "computed from output.hidden or output.logits."
            )
        (gradient,) = torch.autograd.grad(value.sum(), logs, allow_unused=True)
    if not plan.tallies[0].touched or gradient is None:
        raise EditError(
            f"profile_heads(keys={template.keys!r}): prompt {batch.indices[0]} has no such key. Choose keys that every "
            "prompt has."
        )
    found = gradient.detach().cpu().numpy()
    for layer in range(tower.depth):
        heads = max((site.heads for site in tower.sites_of(layer)), default=0)
        found[layer, heads:] = np.nan
    return float(value.detach()), found


def _with_exact(
    ds: xr.Dataset, model: Model, prompts: Prompts, template: ScaleKeys, metric: Metric, gamma: float
) -> xr.Dataset:
    tower = find_tower(model, None)
    places = [(site.layer, head) for site in tower.attention for head in range(site.heads)]
    effect = np.full(ds["first_order"].shape, np.nan, dtype=np.float32)
    edits = {at: ScaleKeys(gamma, keys=template.keys, layers=[at[0]], heads=[at[1]]) for at in places}
    if metric is _token_loss:
        variants = {f"{layer} {head}": [edit] for (layer, head), edit in edits.items()}
        found = sweep(model, prompts, variants, [TokenLoss()])["token_loss"].mean("query")
        for (layer, head), label in zip(edits, variants, strict=True):
            effect[:, layer, head] = found.sel(edit=label).values - ds["metric"].values
    else:
        with torch.no_grad(), model.evaluating():
            for row, batch in enumerate(batches(prompts, 1, model.device)):
                for at, edit in edits.items():
                    effect[row, *at] = _value(model, tower, batch, edit, metric) - float(ds["metric"].values[row])
    ds["effect"] = (("prompt", "layer", "head"), effect)
    ds["predicted"] = ds["first_order"] * (math.log(gamma) if gamma > 0 else -math.inf)
    ds.attrs["gamma"] = gamma
    # Minus infinity ranks nothing: for a masked key the heads are ranked by the derivative alone.
    ranking = ds["predicted"] if gamma > 0 else -ds["first_order"]
    return _correlate(ds, ranking)


def _value(model: Model, tower: Tower, batch: Batch, edit: ScaleKeys, metric: Metric) -> float:
    plan = Plan([edit], tower, None, batch)
    wanted = None if model.model.get_output_embeddings() is None else "all"
    return float(metric(model.backend.forward(batch.inputs, tower, Instruments(edits=plan.call_edits), wanted), batch))


def _correlate(ds: xr.Dataset, ranking: xr.DataArray) -> xr.Dataset:
    """Spearman correlation over heads of the means over prompts, and its interval over prompts."""
    whole = rank_correlation(ranking.mean("prompt"), ds["effect"].mean("prompt"))
    names = {"rank_correlation": "correlation", "rank_p_value": "p_value", "rank_n": "n"}
    ds = ds.assign({new: whole[old].reset_coords(drop=True) for new, old in names.items()})
    low = high = math.nan
    if ds.sizes["prompt"] > 1:
        x, y = (a.values.reshape(ds.sizes["prompt"], -1).astype(float) for a in (ranking, ds["effect"]))
        x, y = (a[:, np.isfinite(x[0])] for a in (x, y))
        rng = np.random.default_rng(0)
        draws = [rng.integers(len(x), size=len(x)) for _ in range(RESAMPLES)]
        found = [float(np.asarray(stats.spearmanr(x[at].mean(0), y[at].mean(0))[0])) for at in draws]
        low, high = np.quantile(found, [0.025, 0.975])
    return ds.assign(rank_low=float(low), rank_high=float(high))
