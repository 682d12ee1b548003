"""Every variant against Llama written out once more: float64, whole maps, no code shared with the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import sinkscope as sk
from sinkscope.errors import ModelError
from sinkscope.models import variants

VARIANTS = {
    "key": {"extra_key": True},
    "key and value": {"extra_key": "value"},
    "key, value and one more": {"extra_key": "value", "normaliser": "softmax1"},
    "value": {"value_bias": True},
    "sigmoid": {"normaliser": "sigmoid", "value_bias": True},
    "normalised sigmoid": {"normaliser": "sigmoid_normalised"},
    "prefix": {"prefix": 3},
    "learned": {"positions": "learned"},
    "alibi": {"positions": "alibi"},
    "none": {"positions": "none"},
    "elements": {"gate": "element", "positions": "alibi", "prefix": 2},
}
LENGTHS = 7, 11


def network(name):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=None, initializer_range=0.4,
        pad_token_id=29, **{f"sinkscope_{key}": value for key, value in VARIANTS[name].items()},
    )  # fmt: skip
    model = variants.build(config).eval()
    for part, parameter in model.named_parameters():
        if part.endswith(("extra_key", "extra_value", "value_bias")):
            assert float(parameter.detach().abs().max()) == 0.0
            parameter.data.normal_()
    return model


def norm(x, weight):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weight


def rotated(x):
    """Llama's rotary position encoding of (head, token, dim)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1]).double()[:, None] / 10000.0 ** (torch.arange(half).double() / half)
    one, two = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


def attention(model, w, x, spec, layer):
    """Output of one attention block for (token, width), and its maps."""
    heads, tokens = 4, len(x)
    at = f"model.layers.{layer}.self_attn."
    q, k, v = (
        (x @ w[f"{at}{part}_proj.weight"].T).view(tokens, -1, 4).transpose(0, 1) for part in ("q", "k", "v")
    )  # fmt: skip
    if spec.get("positions", "rotary") == "rotary":
        q, k = rotated(q), rotated(k)
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    logits = q @ k.transpose(1, 2) / 2.0
    seen = torch.ones(tokens, tokens).tril().bool()
    if spec.get("positions") == "alibi":
        for head in range(heads):
            for i in range(tokens):
                for j in range(i + 1):
                    logits[head, i, j] -= 2.0 ** (-8 * (head + 1) / heads) * (i - j)
    seen[:, : spec.get("prefix", 0)] = True
    kind = spec.get("normaliser", "softmax")
    if kind.startswith("sigmoid"):
        weights = torch.sigmoid(logits) * seen
        weights = weights / weights.sum(-1, keepdim=True) if kind.endswith("ed") else weights
        extra = torch.zeros(heads, tokens)
    else:
        raised = logits.exp() * seen
        more = torch.zeros(heads, tokens).double()
        if spec.get("extra_key"):
            more = (torch.einsum("hqd,hd->hq", q, w[f"{at}extra_key"]) / 2.0).exp()
        total = raised.sum(-1) + more + (kind == "softmax1")
        weights, extra = raised / total[..., None], more / total
    out = weights @ v
    if spec.get("extra_key") == "value":
        out = out + extra[..., None] * w[f"{at}extra_value"][:, None]
    if spec.get("value_bias"):
        out = out + w[f"{at}value_bias"][:, None]
    out = out.transpose(0, 1).reshape(tokens, -1)
    if spec.get("gate"):
        out = out * torch.sigmoid(x @ w[f"{at}gate_proj.weight"].T)
    return out @ w[f"{at}o_proj.weight"].T, weights


def reference(model, ids, spec):
    """Logits (token, vocab) and maps (layer, head, query, key) of one unpadded prompt."""
    w = {name: value.double() for name, value in model.state_dict().items()}
    x = w["model.embed_tokens.weight"][ids]
    if spec.get("positions") == "learned":
        x = x + w["model.embed_positions.weight"][: len(ids)]
    maps = []
    for layer in range(2):
        at = f"model.layers.{layer}."
        out, weights = attention(model, w, norm(x, w[f"{at}input_layernorm.weight"]), spec, layer)
        x, _ = x + out, maps.append(weights)
        y = norm(x, w[f"{at}post_attention_layernorm.weight"])
        y = torch.nn.functional.silu(y @ w[f"{at}mlp.gate_proj.weight"].T) * (y @ w[f"{at}mlp.up_proj.weight"].T)
        x = x + y @ w[f"{at}mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T, torch.stack(maps)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_is_what_its_name_says_and_is_read_as_it_is(name):
    model, spec = network(name), VARIANTS[name]
    ids = [torch.randint(0, 29, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    handle = sk.load_model(model)
    prompts = sk.Prompts.from_ids([row.tolist() for row in ids], handle)
    probes = [sk.Logits(positions="all"), sk.AttentionMap(layers=[0, 1], heads=range(4)), sk.KeyMass(), sk.RowSum()]
    ds = sk.run(handle, prompts, probes, batch_size=2)
    for i, row in enumerate(ids):
        with torch.no_grad():
            logits, maps = reference(model, row, spec)
            own = model(row[None]).logits[0]
        n = len(row)
        torch.testing.assert_close(own.double(), logits, atol=2e-5, rtol=0)
        found = ds.isel(prompt=i, query=slice(n), key=slice(n))
        np.testing.assert_allclose(found["attention"].values, maps, atol=1e-5)
        np.testing.assert_allclose(ds["logits"].isel(prompt=i, position=slice(n)).values, logits, atol=5e-5)
        np.testing.assert_allclose(found["row_sum"].values, maps.sum(-1), atol=1e-5)
        for key in range(n):
            rows = slice(0 if key < spec.get("prefix", 0) else key, n)
            mass = maps[:, :, rows, key].mean(-1)
            np.testing.assert_allclose(found["key_mass"].values[..., key], mass, atol=1e-5)
    assert handle.capabilities(verify=True)


@pytest.mark.parametrize("name", ["key and value", "prefix", "learned", "alibi"])
def test_the_cache_gives_the_same(name):
    model = network(name)
    ids = torch.randint(0, 29, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :5], use_cache=True)
        rest = model(ids[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 5:], atol=2e-5, rtol=0)
    handle = sk.load_model(model)
    prompts = sk.Prompts.from_ids([ids[0].tolist(), ids[0, :6].tolist()], handle)
    written = sk.generate(handle, prompts, edits=[sk.MaskKeys([1])], max_new_tokens=2)
    assert written is not None


def test_what_would_be_left_out_is_refused():
    model = network("alibi")
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match=r"'eager' leaves out.*set_attn_implementation\('sinkscope_dense'\)"):
        model(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ModelError, match=r"sinkscope_positions='rope': unknown. Use one of rotary, learned"):
        variants.build(LlamaConfig(sinkscope_positions="rope"))
