"""A realistic reading without a model: a sink on the first token, its values drained, one dimension that carries it."""

import json

import numpy as np
import xarray as xr

from sinkscope import registry, schema

TOKENS = [
    "<s>", " The", " price", " of", " $5", "\n", " tea", "</script><script>alert(1)</script>",
    " 世界", "😀", ".", " $x_1$",
    " internationalization", "\t", "", "&amp;", " é", "\u202e", "\u2028", " end",
]  # fmt: skip


def _sites(layers):
    return ["embed", *(f"{i}.{part}" for i in range(layers) for part in ("mid", "post"))]


def fake_reading(lengths=(40, 25, 33), layers=6, heads=12, kv_heads=4, dim=64, seed=0, sink=True):
    """Build a valid reading; ``sink=False`` spreads the attention evenly."""
    r = np.random.default_rng(seed)
    prompts, keys = len(lengths), max(lengths)
    dims = ("prompt", "layer", "head")
    real = np.arange(keys)[None] < np.asarray(lengths)[:, None]
    mass = r.gamma(1.0, 0.004, (prompts, layers, heads, keys)) + 0.005
    if sink:
        level = np.clip(np.linspace(0.05, 0.8, layers)[:, None] + r.normal(0, 0.15, (layers, heads)), 0.02, 0.97)
        mass[..., 0] = level[None]
    mass[~np.broadcast_to(real[:, None, None], mass.shape)] = np.nan
    entropy = np.log(np.arange(1, keys + 1)) * (1 - np.nan_to_num(mass[..., :1]))
    entropy = np.where(real[:, None, None], np.broadcast_to(entropy, mass.shape), np.nan)
    value = r.normal(4, 0.4, (prompts, layers, kv_heads, keys))
    if sink:
        value[..., 0] *= np.linspace(0.9, 0.12, layers)[None, :, None]
    value[~np.broadcast_to(real[:, None, None], value.shape)] = np.nan
    sites = _sites(layers)
    top = np.sort(r.gamma(4, 0.6, (prompts, len(sites), 10)))[..., ::-1].copy()
    where = r.integers(0, min(lengths), top.shape).astype(float)
    which = r.integers(0, dim, top.shape).astype(float)
    if sink:
        top[:, 4:-1, 0] = 380 + r.normal(0, 5, (prompts, len(sites) - 5))
        where[:, 4:-1, 0], which[:, 4:-1, 0] = 0, 17
        top[:, 4:-1, 1] = -140.0
        where[:, 4:-1, 1], which[:, 4:-1, 1] = 0, 42
    norm = r.normal(12, 1, (prompts, len(sites), keys))
    if sink:
        norm[:, 4:-1, 0] = 420
    norm[~np.broadcast_to(real[:, None], norm.shape)] = np.nan
    ds = xr.Dataset(
        {
            "key_mass": ((*dims, "key"), mass.astype("float32")),
            "entropy": ((*dims, "query"), entropy.astype("float32")),
            "max_attention": ((*dims, "query"), np.where(real[:, None, None], np.clip(mass * 1.1, 0, 1), np.nan)),
            "value_norm": (("prompt", "layer", "kv_head", "key"), value.astype("float32")),
            "key_norm": (("prompt", "layer", "kv_head", "key"), (value * 2).astype("float32")),
            "residual_norm": (("prompt", "site", "key"), norm.astype("float32")),
            "top_value": (("prompt", "site", "rank"), top.astype("float32")),
            "top_dim": (("prompt", "site", "rank"), which.astype("float32")),
            "top_position": (("prompt", "site", "rank"), where.astype("float32")),
            "top_token_median": (("prompt", "site", "rank"), r.uniform(0.3, 0.5, top.shape).astype("float32")),
            "top_dim_median": (("prompt", "site", "rank"), r.uniform(0.3, 0.5, top.shape).astype("float32")),
            "median_abs": (("prompt", "site"), r.uniform(0.3, 0.5, (prompts, len(sites))).astype("float32")),
            "role_share": ((*dims, "role"), _shares(mass, heads)),
        }
    )
    tokens = np.array([[(TOKENS * 3)[t] if t < n else "" for t in range(keys)] for n in lengths])
    roles = np.where(real, "text", "pad").astype("<U12")
    roles[:, 0] = "bos"
    roles[(tokens == ".") & real] = "punctuation"
    roles[(tokens == "\n") & real] = "newline"
    ds = ds.assign_coords(
        prompt=np.arange(prompts), layer=np.arange(layers), head=np.arange(heads), site=sites,
        role=["bos", "text", "punctuation", "newline"], token=(("prompt", "key"), tokens),
        token_role=(("prompt", "key"), roles), kv_of_head=("head", np.arange(heads) * kv_heads // heads),
        site_name=("site", [f"hook_{s}" for s in sites]),
    )  # fmt: skip
    ds.attrs = {
        "sinkscope_version": "0.1.0", "schema_version": 2, "model_id": "fake/six-layers", "model_fingerprint": "f00d",
        "dtype": "float32", "backend": "transformers", "path": "blockwise", "edits": "[]",
        "probes": json.dumps([{"probe": "KeyMass", "keys": None}, {"probe": "MaxAttention", "keys": "image"}]),
        "definitions": json.dumps({"key_mass": "gu2025"}), "variables": _declared(ds),
        "prompts_hash": "cafe", "key0": "the beginning-of-sequence token <s>",
        "versions": json.dumps({"torch": "2.13"}),
        "created": "2026-11-21T00:00:00Z", "seed": 0, "causal": 1, "d_model": dim,
    }  # fmt: skip
    return ds


def _declared(ds):
    made = {n: v for probe in registry.Table("probe").values() for n, v in probe.variables.items()}
    return schema.declare({str(name): made[str(name)] for name in ds.data_vars})


def _shares(mass, heads):
    bos = mass[..., 0]
    rest = 1 - bos
    return np.stack([bos, rest * 0.7, rest * 0.2, rest * 0.1], axis=-1).astype("float32")
