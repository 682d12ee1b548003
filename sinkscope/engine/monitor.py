"""``monitor``: sinks of any forward pass, in training or generation, measured on every n-th pass as it goes by."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from sinkscope.attention import paths, seam
from sinkscope.attention.call import Call
from sinkscope.attention.view import Ask, Context, Wants
from sinkscope.engine.applied import watch_passes
from sinkscope.engine.generated import KeySums, as_array
from sinkscope.engine.run import find_tower
from sinkscope.errors import OutputError, ProbeError, SinkscopeWarning, UnsupportedModelError
from sinkscope.files import as_path
from sinkscope.models.backends.base import Instruments, Tower
from sinkscope.models.backends.collector import Collector
from sinkscope.models.backends.residual_hooks import residual_hooks

if TYPE_CHECKING:
    import xarray as xr

    from sinkscope.models.handle import Model

KEPT = 1000
"""Rows that a monitor keeps in memory, the newest."""

Row = dict[str, Any]
Write = Callable[[Row], object]
PER_HEAD = ("sink_share", "entropy", "max_logit")
PER_KV_HEAD = ("first_value_norm", "value_norm")


@contextlib.contextmanager
def monitor(
    model: Model, *, every: int = 10, to: str | os.PathLike[str] | Write | None = None, scores: int = 0
) -> Iterator[Monitor]:  # fmt: skip
    """Measure sinks on every n-th forward pass inside: of training, evaluation or ``model.model.generate``.

    No prompts are needed. The passes between are run untouched. On a pass that is measured, the statistics of each
    attention call are computed beside it without a gradient, exactly, and no map is kept; the pass itself goes through
    sinkscope's attention function. Left padding and caches are read from the model's inputs.

    A row holds ``pass`` (number of the pass), ``queries``, ``cached`` (tokens in the cache) and lists by layer of a
    number per head: ``sink_share`` (attention on the first real token, mean over the queries that see it), ``entropy``
    (nat, mean over queries), ``max_logit`` (largest logit before the softmax: what QK-clip needs); per key-value head
    ``first_value_norm`` (of the first real token) and ``value_norm`` (mean of all); and by residual site ``massive``
    (largest magnitude).

    With ``scores`` a row has ``sink_scores`` too, by layer (prompt head rank): that many of the largest mean attentions
    that a token has got so far in the text, from the prompt and what was written, in falling order. They are the
    features by which Binkowski et al. (binkowski2026, SinkProbe) tell made-up answers, as they stand when each token is
    chosen, from sums and never a map. The classifier is yours: a logistic regression on labels of your own; the paper's
    exact equation was not at hand, so that these are its features as :func:`sinkscope.metrics.sink_scores` defines
    them. ``every`` must then be 1, and the text be written greedily or by sampling: beams change places unseen.

    Args:
        model: the model.
        every: passes from one measurement to the next; the first pass is measured.
        to: where rows go: a path (JSON lines, appended), ``"tensorboard"`` (a run of its own), ``"wandb"`` (the run
            that is open), or a function that is called with each row. The newest 1,000 are in ``rows`` in any case.
        scores: how many sink scores of each head; 0 for none.

    Raises:
        ProbeError: ``every`` below 1, ``scores`` below 0, or scores without ``every=1``.
        UnsupportedModelError: the model is not driven by transformers, or recomputes its blocks in the backward pass.
        OutputError: the target cannot be written, or its package is not there.

    Warns:
        SinkscopeWarning: a row could not be written later on; training goes on, further rows stay in memory.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ProbeError(f"monitor(every={every!r}): use a whole number of passes, at least 1.")
    if isinstance(scores, bool) or not isinstance(scores, int) or scores < 0:
        raise ProbeError(f"monitor(scores={scores!r}): use a whole number of scores for each head, or 0 for none.")
    if scores and every != 1:
        raise ProbeError(
            f"monitor(scores={scores}, every={every}): scores are sums over all passes. Measure each one, with every=1."
        )
    tower = find_tower(model, None)
    if model.backend.name != "transformers":
        raise UnsupportedModelError(
            f"monitor: {model.id} is driven by {model.backend.name}; passes of your own need the transformers backend."
        )
    with contextlib.ExitStack() as stack:
        watching = Monitor(model, tower, every, _writer(to, stack), KeySums(scores) if scores else None)
        stack.callback(watching.close)
        watching.open()
        yield watching


class Monitor:
    """The passes under way, and what was measured; :func:`monitor` makes it.

    Attributes:
        rows: the newest measurements, a mapping each.
        passes: forward passes seen so far.
    """

    def __init__(
        self, model: Model, tower: Tower, every: int, write: Write | None, sums: KeySums | None = None
    ) -> None:  # fmt: skip
        self.model, self.tower, self.every, self.write, self.sums = model, tower, every, write, sums
        self.rows: deque[Row] = deque(maxlen=KEPT)
        self.passes, self._depth = 0, 0
        self._under_way: contextlib.ExitStack | None = None
        self._pass: _Pass | None = None
        self._handles: list[Any] = []

    def sink_scores(self) -> xr.DataArray:
        """Return the sink scores of the rows in memory as (position prompt layer head rank).

        ``position`` is the place of the token that a pass chose, counted with the padding before its prompt.

        Raises:
            ProbeError: no row has scores, or they are of different numbers of prompts.
        """
        return as_array(self.rows)

    def open(self) -> None:
        """Watch the model and its headless part, whichever is called."""
        self._handles = watch_passes(self.model.model, self._before, self._after)

    def close(self) -> None:
        """Take every hook out."""
        self._end()
        for handle in self._handles:
            handle.remove()

    def _before(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self.passes += 1
        # A run of sinkscope's own is its own measurement.
        if (self.passes - 1) % self.every or seam._active.get() is not None:
            return
        if torch.is_grad_enabled() and any(
            module.training and getattr(module, "gradient_checkpointing", False)
            for module in self.model.model.modules()
        ):
            raise UnsupportedModelError(
                "monitor: this model recomputes its blocks in the backward pass (gradient checkpointing), where the "
                "pass would not be what was measured. Turn it off, or use sinkscope.training.SinkCallback."
            )
        self._pass = _Pass(self.model, self.tower, kwargs, self.sums)
        self._under_way = contextlib.ExitStack()
        self._under_way.enter_context(seam.entered(self.model.model, self._pass.session))
        rows = _rows(args, kwargs)
        residual = self._pass.instruments.residual
        self._under_way.enter_context(residual_hooks(self.model.model, self.tower, residual, rows))

    def _after(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        done = self._pass
        self._end()
        if done is not None and done.queries:
            self._keep({"pass": self.passes - 1, **done.row()})

    def _end(self) -> None:
        self._depth, self._pass = 0, None
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        if self.write is None:
            return
        try:
            self.write(row)
        except OSError as error:
            self.write = None
            warnings.warn(
                f"monitor: pass {row['pass']} could not be written ({error.strerror or error}). The model goes on; "
                "rows are kept in memory alone.",
                SinkscopeWarning,
                stacklevel=2,
            )


class _Pass:
    """What is measured of one forward pass."""

    def __init__(self, model: Model, tower: Tower, kwargs: Mapping[str, Any], sums: KeySums | None) -> None:
        self.sums, self.scores = sums, dict[int, torch.Tensor]()
        mask = kwargs.get("attention_mask")
        self.mask = mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        self.queries, self.cached = 0, 0
        self.found: dict[str, dict[int, list[torch.Tensor]]] = {name: {} for name in (*PER_HEAD, *PER_KV_HEAD)}
        self.massive: dict[str, torch.Tensor] = {}
        self.instruments = Instruments(residual={name: [self._watch(name)] for name in tower.site_names})
        collector = Collector(model.model, tower, self.instruments, lambda _: None)
        self.site_of, self.count = collector.site_of, collector.count
        self.session = seam.Session(observe=self._observe)

    def _watch(self, name: str) -> Callable[[Float[torch.Tensor, "batch key d_model"]], None]:
        def hook(hidden: torch.Tensor) -> None:
            states = hidden.detach()
            if self.mask is not None and self.mask.shape[1] >= states.shape[1]:
                states = states[self.mask[:, -states.shape[1] :].to(states.device)]
            # Without a copy of magnitudes: the largest is the larger of both ends.
            low, high = torch.aminmax(states)
            self.massive[name] = torch.maximum(high, -low).float()

        return hook

    @torch.no_grad()
    def _observe(self, module: torch.nn.Module, call: Call) -> None:
        site = self.site_of(module)
        if site is None:
            return
        self.count[id(module)] = self.count.get(id(module), 0) + 1
        real = self._real(call)
        first = torch.zeros_like(real).scatter_(1, real.int().argmax(1, keepdim=True), True) & real
        context = Context(real, torch.zeros_like(real).long(), (0,))
        of_keys = "key_sum" if self.sums else Ask("key_sum", {"keys": first})
        wants = Wants("entropy", "max_logit", of_keys, "key_viewers", "value_norm")
        stats = paths.attend(call, wants, context)[1]
        if self.sums and site.layer not in self.scores:
            self.scores[site.layer] = self.sums.add(site.layer, call, stats)
        rows = call.query.shape[2]
        live = (real[:, -rows:] if real.shape[1] >= rows else real.new_ones(len(real), rows))[:, None]
        number = live.sum().clamp(min=1)
        norms, keys = stats["value_norm"], real[:, None]
        viewers = (stats["key_viewers"] * first).sum(1)
        # A window may have moved on from the first token: such prompts have no share of it.
        on_first = stats["key_sum"].masked_fill(~first[:, None], 0.0).sum(2)
        share = on_first[viewers > 0] / viewers[viewers > 0, None]
        top = stats["max_logit"].masked_fill(~live, -torch.inf).amax((0, 2))
        for name, value in (
            ("sink_share", share.mean(0)),
            ("entropy", (stats["entropy"] * live).sum((0, 2)) / number),
            ("max_logit", top),
            ("first_value_norm", (norms * first[:, None]).sum((0, 2)) / first.any(1).sum().clamp(min=1)),
            ("value_norm", (norms * keys).sum((0, 2)) / keys.sum().clamp(min=1)),
        ):
            self.found[name].setdefault(site.layer, []).append(value)
        # A window's cache holds the last keys alone, and its mask says how many went before.
        self.queries, self.cached = rows, max(self.cached, call.mask.kv_offset + call.key.shape[2] - rows)

    def _real(self, call: Call) -> torch.Tensor:
        """Which keys are real tokens: by the model's own mask, where it speaks of these keys."""
        shape = (call.query.shape[0], call.key.shape[2])
        if self.mask is not None and self.mask.shape == shape:
            return self.mask.to(call.key.device)
        return torch.ones(shape, dtype=torch.bool, device=call.key.device)

    def row(self) -> Row:
        """Return the measurements as plain numbers: one transfer from the device for each kind."""
        row: Row = {"queries": self.queries, "cached": self.cached}
        for name, layers in self.found.items():
            # A block that attends more than once has the mean of its calls, of a maximum the largest.
            several = {
                layer: torch.stack(calls).amax(0) if name == "max_logit" else torch.stack(calls).mean(0)
                for layer, calls in sorted(layers.items())
            }
            row[name] = {str(layer): value.tolist() for layer, value in several.items()}
        if self.scores:
            row["sink_scores"] = {str(layer): found.tolist() for layer, found in sorted(self.scores.items())}
        names = list(self.massive)
        row["massive"] = dict(zip(names, torch.stack([self.massive[n].cpu() for n in names]).tolist(), strict=True))
        return row


def scalars(row: Row) -> dict[str, float]:
    """Sum a row up for a curve: means over heads, the largest logit and the largest activation."""
    heads = {name: [v for layer in row[name].values() for v in layer] for name in (*PER_HEAD, *PER_KV_HEAD)}
    found = {f"sinks/{name}": sum(values) / len(values) for name, values in heads.items() if name != "max_logit"}
    found["sinks/sink_share_max"] = max(heads["sink_share"])
    found["sinks/max_logit"] = max(heads["max_logit"])
    found["sinks/massive"] = max(row["massive"].values())
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _finite(value: Any) -> Any:
    """The same with None for numbers that are none, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _writer(to: Any, stack: contextlib.ExitStack) -> Write | None:
    if to is None or callable(to):
        return to
    if to == "tensorboard":
        return _tensorboard(stack)
    if to == "wandb":
        return _wandb()
    path = as_path(to, OutputError)
    try:
        file = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))
    except OSError as error:
        raise OutputError(
            f"monitor(to={str(to)!r}): cannot be written ({error.strerror}). Name a file in a folder that exists."
        ) from None

    def write(row: Row) -> None:
        file.write(json.dumps(_finite(row), allow_nan=False) + "\n")

    return write


def _tensorboard(stack: contextlib.ExitStack) -> Write:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise OutputError(
            "monitor(to='tensorboard'): it is not installed. Install it: pip install tensorboard."
        ) from None
    board = stack.enter_context(contextlib.closing(SummaryWriter()))

    def write(row: Row) -> None:
        for name, value in scalars(row).items():
            board.add_scalar(name, value, row["pass"])

    return write


def _wandb() -> Write:
    try:
        import wandb
    except ImportError:
        raise OutputError("monitor(to='wandb'): it is not installed. Install it: pip install wandb.") from None
    run = wandb.run
    if run is None:
        raise OutputError("monitor(to='wandb'): no run is open. Call wandb.init() first.")

    def write(row: Row) -> None:
        run.log(scalars(row) | {"sinks/pass": row["pass"]})

    return write


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Prompts of the batch of a call."""
    for value in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), kwargs.get("pixel_values"), *args):
        if isinstance(value, torch.Tensor):
            return len(value)
    return 1
