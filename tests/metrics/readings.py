"""Readings made by hand for the tests of metrics: exact maps of prompts of different length."""

import json

import numpy as np
import xarray as xr

A5 = np.array(
    [
        [1, 0, 0, 0, 0],
        [0.8, 0.2, 0, 0, 0],
        [0.6, 0.1, 0.3, 0, 0],
        [0.5, 0.1, 0.35, 0.05, 0],
        [0.4, 0.1, 0.4, 0.05, 0.05],
    ]
)
A5_SELF = np.array(
    [
        [1, 0, 0, 0, 0],
        [0.1, 0.9, 0, 0, 0],
        [0.1, 0.2, 0.7, 0, 0],
        [0.05, 0.15, 0.2, 0.6, 0],
        [0.05, 0.05, 0.1, 0.2, 0.6],
    ]
)

ATTRS = {
    "sinkscope_version": "0.1.0", "schema_version": 2, "model_id": "made", "model_fingerprint": "f", "dtype": "float32",
    "backend": "transformers", "path": "blockwise", "edits": "[]", "probes": "[]", "definitions": "{}",
    "variables": "{}", "prompts_hash": "p", "key0": "bos", "versions": "{}", "created": "now", "seed": 0, "causal": 1,
    "d_model": 16,
}  # fmt: skip


def entropy(rows):
    safe = np.where(rows > 0, rows, 1.0)
    return -(safe * np.log(safe)).sum(-1)


def from_maps(maps, roles=None, causal=True):
    """Reading of maps: one array (layer, head, T, T) per prompt; shorter prompts are padded with NaN."""
    longest = max(m.shape[-1] for m in maps)
    layers, heads = maps[0].shape[:2]
    full = np.full((len(maps), layers, heads, longest, longest), np.nan)
    role = np.full((len(maps), longest), "", dtype="<U12")
    for p, m in enumerate(maps):
        t = m.shape[-1]
        full[p, :, :, :t, :t] = m
        role[p, :t] = ["bos", *["text"] * (t - 1)] if roles is None else roles[p]
    size = np.array([m.shape[-1] for m in maps])
    seen = (size[:, None] - np.arange(longest)) if causal else size[:, None] * np.ones(longest)
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = np.nansum(full, axis=3) / np.where(seen > 0, seen, np.nan)[:, None, None, :]
    beyond = role == ""
    h = np.array(
        [
            [[entropy(np.nan_to_num(full[p, i, j])) for j in range(heads)] for i in range(layers)]
            for p in range(len(maps))
        ]
    )
    ds = xr.Dataset(
        {
            "attention": (("prompt", "layer", "head", "query", "key"), full),
            "key_mass": (("prompt", "layer", "head", "key"), np.where(beyond[:, None, None], np.nan, mass)),
            "entropy": (("prompt", "layer", "head", "query"), np.where(beyond[:, None, None], np.nan, h)),
            "row_sum": (
                ("prompt", "layer", "head", "query"),
                np.where(beyond[:, None, None], np.nan, np.nansum(full, axis=-1)),
            ),
        },
        coords={
            "prompt": np.arange(len(maps)), "layer": np.arange(layers), "head": np.arange(heads),
            "kv_of_head": ("head", np.arange(heads)),
            "token": (("prompt", "key"), np.where(beyond, "", "x")), "token_role": (("prompt", "key"), role),
        },
        attrs=ATTRS | {"causal": int(causal)},
    )  # fmt: skip
    return ds.astype("float32")


def random_maps(lengths=(12, 8, 5), layers=3, heads=4, seed=0):
    rng = np.random.default_rng(seed)
    maps = []
    for t in lengths:
        raw = np.tril(rng.gamma(1.0, size=(layers, heads, t, t)) + 1e-3)
        maps.append(raw / raw.sum(-1, keepdims=True))
    return maps


def with_edits(ds, labels=("base", "masked")):
    """Put the dim ``edit`` in front of every variable."""
    return xr.concat(
        [ds] * len(labels), dim="edit", data_vars="all", coords="different", compat="equals"
    ).assign_coords(edit=list(labels))


def with_max_attention(ds, role="bos"):
    """Add ``max_attention`` on a role, as the probe makes it, and record the probe."""
    at = (ds["token_role"] == role).reset_coords(drop=True)
    ds = ds.assign(max_attention=ds["attention"].where(at).max("key").astype("float32"))
    ds.attrs["probes"] = json.dumps([{"probe": "MaxAttention", "keys": role, "queries": "all"}])
    return ds


def from_states(states, sites=None, top=10, d_model=None):
    """Reading of residual states: one array (site, T, D) per prompt."""
    longest = max(s.shape[1] for s in states)
    count, width = states[0].shape[0], states[0].shape[2]
    shape = (len(states), count)
    value, dim, place, token_median, dim_median = (np.full((*shape, top), np.nan) for _ in range(5))
    median, norm, role = (
        np.full(shape, np.nan),
        np.full((*shape, longest), np.nan),
        np.full((len(states), longest), "", dtype="<U8"),
    )
    for p, s in enumerate(states):
        role[p, : s.shape[1]] = ["bos", *["text"] * (s.shape[1] - 1)]
        norm[p, :, : s.shape[1]] = np.linalg.norm(s, axis=-1)
        for i in range(count):
            flat = s[i].ravel()
            order = np.argsort(-np.abs(flat))[:top]
            value[p, i], dim[p, i], place[p, i] = flat[order], order % width, order // width
            token_median[p, i] = np.median(np.abs(s[i]), axis=1)[order // width]
            dim_median[p, i] = np.median(np.abs(s[i]), axis=0)[order % width]
            median[p, i] = np.median(np.abs(flat))
    names = sites or ["embed", *[f"{i}.post" for i in range(count - 1)]]
    rank = ("prompt", "site", "rank")
    return xr.Dataset(
        {"top_value": (rank, value), "top_dim": (rank, dim), "top_position": (rank, place),
         "top_token_median": (rank, token_median), "top_dim_median": (rank, dim_median),
         "median_abs": (("prompt", "site"), median), "residual_norm": (("prompt", "site", "key"), norm)},
        coords={"prompt": np.arange(len(states)), "site": names, "token_role": (("prompt", "key"), role)},
        attrs=ATTRS | {"d_model": d_model or width},
    )  # fmt: skip
