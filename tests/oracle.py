"""Dense float64 attention and every statistic by its definition: what the instrument is checked against.

Written from the definitions alone and sharing no code with sinkscope. Maps are built whole, which is fine for the
lengths of tests. ``Capture`` reads what each attention call of a transformers model is given, through an attention
function of its own beside the library's eager mask, so that queries, keys and values come from the library itself.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface


@dataclass
class Dense:
    """One attention call, dense. ``weights`` are those of the keys alone: an implicit sink's share is left out."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    visible: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor
    log_sum_exp: torch.Tensor
    output: torch.Tensor
    path: str = ""


def attention(query, key, value, visible, scale, softcap=None, sinks=None, bias=None, normaliser="softmax"):
    """(batch, head, query, dim) in float64; ``visible`` is (batch, query, key). A row that sees nothing is zero."""
    q, k, v = (t.detach().double() for t in (query, key, value))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(2, 3) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.double()
    seen = visible[:, None].expand_as(logits)
    logits = logits.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    if normaliser == "sigmoid":
        weights = torch.where(seen, torch.sigmoid(logits), 0.0)
    elif normaliser == "relu":
        weights = torch.where(seen, torch.relu(logits), 0.0) / seen.sum(-1, keepdim=True).clamp(min=1)
    else:
        total = lse
        if sinks is not None:
            total = torch.logaddexp(total, sinks.double()[None, :, None].expand_as(lse))
        if normaliser == "softmax1":
            total = torch.logaddexp(total, torch.zeros_like(total))
        weights = torch.where(seen, (logits - total[..., None]).exp(), 0.0)
    return Dense(q, key.double(), value.double(), visible, logits, weights, lse, weights @ v)


def key_mass(weights, visible, real=None):
    """Mean, over the real queries that can see a key, of the weight it gets: (head, query, key) to (head, key)."""
    rows = visible.double() if real is None else visible.double() * real[:, None].double()
    return (weights * rows).sum(-2) / rows.sum(-2)


def role_share(weights, roles, count):
    """Weight on the keys of each role: (head, query, key) to (head, query, role)."""
    shares = [weights[..., torch.as_tensor(roles) == role].sum(-1) for role in range(count)]
    return torch.stack(shares, -1)


def entropy(weights):
    """Natural-log entropy of each row over its keys, without renormalising: (head, query, key) to (head, query)."""
    return -torch.where(weights > 0, weights * weights.clamp(min=1e-300).log(), 0.0).sum(-1)


def row_sum(weights):
    return weights.sum(-1)


def largest(weights, keys):
    """Largest single weight on some keys; 0 where a row has none of them."""
    return weights[..., torch.as_tensor(keys)].amax(-1) if bool(torch.as_tensor(keys).any()) else 0 * weights[..., 0]


def contribution(weights, value, write, roles, count):
    """Sum over a role's keys of |weight x value x W_O|, mean over the queries: to (head, role).

    ``write`` is (head, dim, d_model): the rows of W_O that read each head.
    """
    group = weights.shape[0] // value.shape[0]
    written = torch.einsum("hkd,hde->hke", value.repeat_interleave(group, 0), write)
    each = (weights[..., None] * written[:, None]).norm(dim=-1)
    return role_share(each, roles, count).mean(1)


def phi(stream, dims=None):
    """Largest |x_d| over the root mean square of each token: (key, d_model) to (key,)."""
    x = stream.double()
    part = x if dims is None else x[:, list(dims)]
    return part.abs().amax(-1) / torch.sqrt((x**2).mean(-1) + 1e-6)


def massive(stream, top):
    """Signed entries ranked by magnitude, as (value, dim, position) lists, and the mid-point median magnitude."""
    x = stream.double().numpy()
    order = np.argsort(-np.abs(x), axis=None, kind="stable")[:top]
    position, dim = np.unravel_index(order, x.shape)
    return x[position, dim], dim, position, float(np.median(np.abs(x)))


def token_loss(logits, ids):
    """Cross-entropy of token t + 1 at position t."""
    picked = torch.log_softmax(logits.double(), -1)[:-1].gather(-1, ids[1:, None])
    return -picked[:, 0]


def causal(queries, keys=None, window=None, offset=0):
    """(1, query, key): key j is seen by query i if j <= i + offset, and within the window."""
    i = torch.arange(queries)[:, None] + offset
    j = torch.arange(queries if keys is None else keys)[None]
    seen = j <= i
    return (seen if window is None else seen & (j > i - window))[None]


@dataclass
class Captured:
    """Everything one forward pass of a transformers model gave away."""

    calls: list[Dense] = field(default_factory=list)
    output: object = None
    blocks: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_current: list[Captured] = []


def _function(
    module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, softcap=None, s_aux=None, **kwargs
):
    batch, _, rows, _ = query.shape
    if attention_mask is None:
        visible = torch.ones(batch, rows, key.shape[2], dtype=torch.bool)
    else:
        mask = attention_mask[..., : key.shape[2]]
        visible = (mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask)[:, 0]
        visible = visible.expand(batch, -1, -1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = attention(query, key, value, visible, scale, softcap, s_aux)
    found.path = module._oracle_path
    _current[-1].calls.append(found)
    return found.output.transpose(1, 2).to(query.dtype).contiguous(), None


AttentionInterface.register("oracle", _function)
AttentionMaskInterface.register("oracle", eager_mask)


@contextmanager
def implementation(model, name):
    """The model under another attention implementation, the old one back afterwards."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "to_dict")}
    before = [(c, c._attn_implementation_internal) for c in configs.values()]
    for config, _ in before:
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for config, old in before:
            config._attn_implementation_internal = old


def block_of(path):
    """Path of the block an attention module sits in: up to the first number."""
    found = re.match(r"^(.*?\.\d+)(\.|$)", path)
    assert found, path
    return found[1]


@torch.no_grad()
def capture(model, **inputs):
    """Run the model once and give every attention call and every block's input and output."""
    found = Captured()
    for path, module in model.named_modules():
        module._oracle_path = path
    paths = {
        block_of(p) for p, m in model.named_modules() if re.search(r"\.\d+\.", p) and "ttention" in type(m).__name__
    }
    handles = []
    for path in paths:

        def keep(_module, args, kwargs, output, path=path):
            states = args[0] if args else kwargs["hidden_states"]
            found.blocks[path] = (states.detach(), output[0] if isinstance(output, tuple) else output)

        handles.append(model.get_submodule(path).register_forward_hook(keep, with_kwargs=True))
    _current.append(found)
    try:
        with implementation(model, "oracle"):
            found.output = model(**inputs)
    finally:
        _current.pop()
        for handle in handles:
            handle.remove()
        for module in model.modules():
            del module._oracle_path
    return found


_WRITERS = ("o_proj", "out_proj", "c_proj", "dense", "proj", "projection_layer")


def write_matrix(model, path, heads):
    """W_O of an attention module, split by head: (head, dim, d_model)."""
    module = model.get_submodule(path)
    found = next((getattr(module, name) for name in _WRITERS if hasattr(module, name)), None)
    if found is None:  # BERT keeps it in the sibling of its self-attention
        found = model.get_submodule(path.rsplit(".", 1)[0] + ".output.dense")
    weight = found.weight.detach().double()
    weight = weight if type(found).__name__ == "Conv1D" else weight.T
    return weight.reshape(heads, -1, weight.shape[-1])
