"""An independent reading of a language model: transformers' eager attention in float64, and hooks of its own.

Nothing of sinkscope is used. Edits of attention replace the eager function of the architecture by a dense one that
multiplies the weights of the first key and takes each row back to its sum.
"""

import importlib
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM


def load(folder):
    """The model in float64 with eager attention, its norms included, which transformers computes in float32."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, module=module: rms_norm(module, x)
    return network


def rms_norm(module, x):
    """Root mean square norm; Gemma's scale is one plus its weight."""
    gemma = "Gemma" in type(module).__name__
    scale, epsilon = (1 + module.weight, module.eps) if gemma else (module.weight, module.variance_epsilon)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * scale


def dense(gamma):
    """Eager attention in which the first key's weight is multiplied by ``gamma`` and the row renormalised.

    A row that sees nothing but the first key is left as it is.
    """

    def attend(module, query, key, value, mask, scaling, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        weights = torch.softmax(query @ key.mT * scaling + mask[..., : key.shape[2]], -1)
        factor = torch.ones(weights.shape[-1], dtype=weights.dtype)
        factor[0] = gamma
        changed = weights * factor
        total = changed.sum(-1, keepdim=True)
        alone = weights[..., :1] > 1 - 1e-12
        weights = torch.where(alone, weights, changed / total.clamp(min=1e-300))
        return (weights @ value).transpose(1, 2).contiguous(), weights

    return attend


@contextmanager
def attention(network, function):
    """Put another function in the place of the architecture's own eager attention."""
    module = importlib.import_module(type(network).__module__)
    own = module.eager_attention_forward
    module.eager_attention_forward = function
    try:
        yield
    finally:
        module.eager_attention_forward = own


@torch.no_grad()
def read(network, ids, *, gamma=1.0, zeroed=None):
    """Maps, values, residual stream and losses of one prompt, as float64 arrays.

    Args:
        network: from :func:`load`.
        ids: token ids of one prompt.
        gamma: factor on the first key's weight in every layer and head.
        zeroed: (block, dimension, tokens) that is set to zero in the output of that block.
    """
    blocks, stream, values, handles = network.model.layers, {}, {}, []
    sandwich = hasattr(blocks[0], "pre_feedforward_layernorm")  # Gemma has a norm on either side of each part
    norm = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"

    def hidden(output):
        return output[0] if isinstance(output, tuple) else output

    def before(name):
        return lambda module, args, kwargs: stream.update({name: hidden(args or (kwargs["hidden_states"],))[0].clone()})

    def after(name, module, output):
        if zeroed is not None and name == f"{zeroed[0]}.post":
            hidden(output)[:, zeroed[2], zeroed[1]] = 0
        stream[name] = hidden(output)[0].clone()

    handles.append(blocks[0].register_forward_pre_hook(before("embed"), with_kwargs=True))
    for i, block in enumerate(blocks):
        handles += [
            getattr(block, norm).register_forward_pre_hook(before(f"{i}.mid"), with_kwargs=True),
            block.register_forward_hook(lambda m, a, o, i=i: after(f"{i}.post", m, o)),
            block.self_attn.v_proj.register_forward_hook(lambda m, a, o, i=i: values.update({i: o[0].clone()})),
        ]
    try:
        with attention(network, dense(gamma)):
            out = network(torch.tensor([ids]), output_attentions=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    losses = -torch.log_softmax(out.logits[0, :-1], -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    heads = network.config.num_key_value_heads
    return {
        "maps": torch.cat([layer for layer in out.attentions]).numpy(),
        "values": torch.stack([values[i].unflatten(-1, (heads, -1)) for i in range(len(blocks))]).numpy(),
        "stream": {name: state.numpy() for name, state in stream.items()},
        "losses": losses.numpy(),
    }
