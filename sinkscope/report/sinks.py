"""Which token is the sink: the group of tokens that most heads put their attention on."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from sinkscope.errors import MetricError
from sinkscope.metrics.base import even_key_mass, token_roles
from sinkscope.metrics.sinks import sink_mask
from sinkscope.report.text import quoted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SinkKind:
    """One kind of token: the first token of the prompts, or all tokens with one string.

    ``heads`` is the share of (prompt, layer, head) for which a token of this kind is a sink; ``mass`` the mean
    attention such a token gets over all of them; ``chance`` what evenly spread attention would give it. ``p_value``
    is that of ``mass`` over ``chance`` with the prompts as the units (sign flips, one-sided); NaN below two prompts.
    """

    label: str
    roles: str
    heads: float
    mass: float
    chance: float
    p_value: float = float("nan")


@dataclass(frozen=True)
class Sinks:
    """What was found: kinds with the strongest first, the tokens of that kind, and the threshold used.

    ``mask`` (prompt, key) marks the tokens of the strongest kind; it serves as ``keys=`` of an edit and for
    :func:`sinkscope.metrics.matched_controls`.
    """

    kinds: tuple[SinkKind, ...]
    mask: xr.DataArray
    threshold: float
    any_sink: float
    n: int
    short: int = 0
    """Prompts left out, because evenly spread attention passes the threshold there without a sink."""

    @property
    def found(self) -> bool:
        """Say whether any head has a sink."""
        return bool(self.kinds) and self.kinds[0].heads > 0

    @property
    def label(self) -> str:
        """Name the sink in words; the first token where none was found."""
        return self.kinds[0].label if self.kinds else "the first token"

    def table(self) -> pd.DataFrame:
        """Return one row per kind of token, strongest first: its share of heads, what it gets, and what is even."""
        import pandas as pd

        return pd.DataFrame([asdict(kind) for kind in self.kinds])

    def __repr__(self) -> str:
        """Return the headline and the kinds of tokens, as text."""
        return f"{self._headline()}\n{self.table().to_string(index=False, float_format=lambda x: f'{x:.3g}')}"

    def _repr_html_(self) -> str:
        table = self.table().to_html(index=False, float_format=lambda x: f"{x:.3g}")
        return f"<div>{html.escape(self._headline())}</div>{table}"

    def _headline(self) -> str:
        said = f"the sink is {self.label}" if self.found else "no sink"
        return f"Sinks: {said} (key mass above {self.threshold:g} in a head; n = {self.n} prompts x layers x heads)"


def find_sinks(ds: xr.Dataset) -> Sinks:
    """Group the sinks of a reading by kind of token.

    A token is a sink of a head where its key mass is above 0.3 (Gu et al. 2025). In a decoder only the first half of a
    prompt counts: later keys are seen by few queries, and a head that attends to itself would pass for one with a sink.
    Positions where evenly spread attention passes the threshold by itself do not count: they cannot tell a sink from
    none. The first token of a decoder's prompt is one of these up to 9 tokens.

    Args:
        ds: a reading with ``key_mass``, no dimension in front of ``prompt``.

    Raises:
        MetricError: there is no ``key_mass``, or a dimension in front.
    """
    flags = sink_mask(ds, min_queries=1)
    if extra := [str(dim) for dim in flags.dims if dim not in ("prompt", "layer", "head", "key")]:
        raise MetricError(
            f"find_sinks: this reading has the dimension {extra[0]!r}. Select one: ds.sel({extra[0]}=...)."
        )
    mass = ds["key_mass"].transpose("prompt", "layer", "head", "key").values.astype(np.float64)
    roles = token_roles(ds, "find_sinks").transpose("prompt", "key").values.astype(str)
    real = (roles != "") & (roles != "pad")
    length = real.sum(axis=1)
    causal = bool(int(ds.attrs.get("causal", 1)))
    counted = real & (np.arange(real.shape[1])[None] < np.ceil(length / 2)[:, None]) if causal else real
    chance = even_key_mass(ds, "find_sinks").transpose("prompt", "key").values
    threshold = float(flags.attrs["threshold"])
    telling = np.nan_to_num(chance, nan=np.inf) <= threshold
    counted &= telling & telling[:, :1]
    hits = flags.transpose("prompt", "layer", "head", "key").values & counted[:, None, None]
    names = _kind_names(ds, real)
    groups = {name: (names == name) & counted for name in dict.fromkeys(names[counted].tolist())}
    kinds = [(_kind(name, group, hits, mass, roles, chance), group) for name, group in groups.items()]
    kinds.sort(key=lambda pair: (-pair[0].heads, -np.nan_to_num(pair[0].mass)))
    mask = (
        kinds[0][1] if kinds and kinds[0][0].heads > 0 else np.arange(real.shape[1])[None] == np.zeros((len(real), 1))
    )
    return Sinks(
        tuple(kind for kind, _ in kinds[:6]),
        xr.DataArray(mask, dims=("prompt", "key"), coords={"prompt": ds["prompt"].values, **_tokens(ds)}),
        threshold,
        _share(hits, mass),
        int(_measured(mass).sum()),
        int((~telling[:, 0]).sum()),
    )


def _tokens(ds: xr.Dataset) -> dict[str, tuple[tuple[str, str], np.ndarray]]:
    """Coordinates that say which token stands where: with them the mask serves an edit, and a draw of controls."""
    names = [name for name in ("token", "token_role") if name in ds.coords]
    return {name: (("prompt", "key"), ds[name].transpose("prompt", "key").values) for name in names}


def _measured(mass: np.ndarray) -> NDArray[np.bool_]:
    """Heads that were read, ``(prompt, layer, head)``: a block without attention has none."""
    return np.asarray(np.isfinite(mass).any(axis=3))


def _share(hits: np.ndarray, mass: np.ndarray) -> float:
    """Share of the heads read that have a hit; NaN where none was."""
    measured = _measured(mass)
    return float(np.asarray(hits.any(axis=3))[measured].mean()) if measured.any() else float("nan")


def _kind_names(ds: xr.Dataset, real: np.ndarray) -> np.ndarray:
    tokens = ds["token"].transpose("prompt", "key").values.astype(str) if "token" in ds.coords else real.astype(str)
    names = np.array([[quoted(token) for token in row] for row in tokens], dtype=object)
    first = names[:, 0].tolist()
    same = len(set(first)) == 1
    names[:, 0] = f"the first token {first[0]}" if same else "the first token"
    return names


def _kind(
    name: str, group: np.ndarray, hits: np.ndarray, mass: np.ndarray, roles: np.ndarray, chance: np.ndarray
) -> SinkKind:
    of_kind = np.broadcast_to(group[:, None, None], mass.shape)
    shares = [(mass[p][:, :, g], chance[p, g]) for p, g in enumerate(group)]
    excess = [float(np.nanmean(own) - even.mean()) for own, even in shares if np.isfinite(own).any()]
    values = mass[of_kind]
    values = values[np.isfinite(values)]
    return SinkKind(
        name,
        ", ".join(dict.fromkeys(roles[group].tolist())),
        _share(hits & of_kind, mass),
        float(values.mean()) if values.size else float("nan"),
        float(chance[group].mean()),
        _p_above_zero(np.array(excess)),
    )


def _p_above_zero(excess: np.ndarray) -> float:
    """p-value of a mean above zero by flipping the signs of the prompts; NaN below two of them."""
    if excess.size < 2:
        return float("nan")
    found = stats.permutation_test(
        (excess,), np.mean, permutation_type="samples", alternative="greater", n_resamples=9999,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)
