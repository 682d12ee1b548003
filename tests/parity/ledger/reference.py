"""What is compared with: the model's own eager functions, listened to and edited in place; blocks by hooks of our own.

Every module of transformers computes eager attention by a function ``eager_attention_forward`` beside its class. While
:class:`Eager` listens, these functions keep what they got and made, and hide a key where one is to be hidden, by the
mask that they add to their logits.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from oracle import implementation


@dataclass
class Heard:
    """One pass by the model's own eager attention: calls in order, hidden states, logits, maps by module's path."""

    calls: list = field(default_factory=list)
    output: object = None
    streams: dict = field(default_factory=dict)
    inner: dict = field(default_factory=dict)


@dataclass
class Call:
    """One attention call: the module, its values by key-value head, and its map."""

    module: torch.nn.Module
    value: torch.Tensor
    weights: torch.Tensor


class Eager:
    """Runs a model by its own eager attention and keeps what happens; ``hide`` is a key column to hide everywhere."""

    def __init__(self, network, blocks=()):
        self.network, self.blocks = network, blocks
        self.heard = None
        self.hide, self.only = None, None

    @torch.no_grad()
    def run(self, call, hide=None, only=None):
        """Run ``call()``; ``hide`` a key in the attention of the modules in ``only`` (None: everywhere)."""
        self.heard, self.hide, self.only = Heard(), hide, only
        with implementation(self.network, "eager"), self._listening(), self._streams(), self._inner():
            self.heard.output = call()
        return self.heard

    @contextmanager
    def _listening(self):
        named = [
            (home, name)
            for home in [m for n, m in list(sys.modules.items()) if n.startswith("transformers.models.") and m]
            for name in list(vars(home))
            if name.endswith("eager_attention_forward")
        ]
        before = [(home, name, getattr(home, name)) for home, name in named]
        try:
            for home, name, function in before:
                setattr(home, name, self._wrapped(function))
            yield
        finally:
            for home, name, function in before:
                setattr(home, name, function)

    def _wrapped(self, function):
        def eager_attention_forward(module, query, key, value, attention_mask=None, *args, **kwargs):
            if self.hide is not None and (self.only is None or id(module) in self.only):
                attention_mask = hidden(attention_mask, query, key, self.hide)
            elif isinstance(attention_mask, torch.Tensor) and attention_mask.dtype == torch.bool:
                attention_mask = added(attention_mask, query)  # to which eager BERT would add 1 (Grounding DINO)
            out = function(module, query, key, value, attention_mask, *args, **kwargs)
            if isinstance(out, tuple) and len(out) > 1 and isinstance(out[1], torch.Tensor):
                self.heard.calls.append(Call(module, value, effective(out[1], value, out[0])))
            return out

        return eager_attention_forward

    @contextmanager
    def _inner(self):
        """Maps that modules hand on beside their output, the second of a pair."""

        def keep(_module, _args, output, path):
            pair = output if isinstance(output, tuple) and len(output) == 2 else (None, None)
            if isinstance(pair[1], torch.Tensor) and pair[1].ndim == 4:
                self.heard.inner.setdefault(path, pair[1].detach())

        handles = [
            module.register_forward_hook(partial(keep, path=path)) for path, module in self.network.named_modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _streams(self):
        handles = []
        for path, turn, layer in self.blocks:
            runs = []

            def keep(_module, args, kwargs, output, turn=turn, layer=layer, runs=runs):
                runs.append(1)
                if turn is None or turn == len(runs) - 1:
                    states = args[0] if args else kwargs.get("hidden_states")
                    made = output[0] if isinstance(output, tuple) else output
                    self.heard.streams[layer] = (kept(states), kept(made))

            handles.append(self.network.get_submodule(path).register_forward_hook(keep, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def effective(weights, value, output):
    """The weights by which ``output`` is made: some functions return them before the rows are scaled by a sink.

    Where the output is no scaled mean of the values, the weights stay as they were returned.
    """
    if weights.ndim != 4 or value.ndim != 4 or weights.shape[1] % value.shape[1] or weights.shape[-1] != value.shape[2]:
        return weights
    plain = weights.to(value.dtype) @ value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
    if output.shape != plain.transpose(1, 2).shape:
        return weights
    made = output.transpose(1, 2)
    size = (plain * plain).sum(-1, keepdim=True)
    scale = torch.where(size > 1e-12, (made * plain).sum(-1, keepdim=True) / size.clamp(min=1e-12), 1.0)
    same = (made - scale * plain).abs().max() <= 1e-4 * made.abs().max()
    return weights * scale if bool(same) and bool((scale - 1).abs().max() > 1e-4) else weights


def kept(states):
    return states.detach().clone() if isinstance(states, torch.Tensor) else None


def hidden(mask, query, key, column):
    """The mask with one key hidden, in rows that see another one."""
    rows, keys = query.shape[2], key.shape[2]
    if column >= keys:
        return mask
    low = torch.finfo(query.dtype).min
    if mask is None:
        mask = torch.zeros(1, 1, rows, keys, dtype=query.dtype)
    elif mask.dtype == torch.bool:
        mask = added(mask, query)
    mask = mask[..., :keys].clone()
    others = mask.clone()
    others[..., column] = low
    alone = (others <= low / 2).all(-1)
    mask[..., column] = torch.where(alone, mask[..., column], low)
    return mask


def added(mask, query):
    """A mask that says what is seen as one that is added to logits."""
    return torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def answer(output):
    """Logits where the model gives any, else the last hidden state."""
    for name in ("logits", "prediction_logits", "last_hidden_state", "logits_per_image"):
        found = getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found
    return output[0] if isinstance(output, tuple) and isinstance(output[0], torch.Tensor) else None
