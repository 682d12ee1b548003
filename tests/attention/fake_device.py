"""A device that is not the CPU, on a machine that has no other: tensors that say ``meta`` and hold CPU numbers.

Every operation is computed on the CPU, so values, ``.item()`` and ``nonzero`` work. An operation that mixes such a
tensor with a real CPU tensor of one or more dimensions raises, as it does on a GPU: that is how a tensor made without a
device is found.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"


class Elsewhere(torch.Tensor):
    """A tensor that lies on the other device."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=NAME,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def __repr__(self):
        return f"Elsewhere({self.inner!r})"


class Device(TorchDispatchMode):
    """While entered, what is made on the other device holds numbers."""

    def __enter__(self):
        self.lists = Lists()
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        return self.lists.__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Lists(TorchFunctionMode):
    """``torch.tensor`` copies numbers to its device below the dispatcher, so it is caught here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):  # not supported for any subclass
            return args[0].inner.tolist()
        return func(*args, **kwargs)


def compute(func, args, kwargs):
    device = kwargs.get("device")
    asked = device is not None and torch.device(device).type == NAME
    leaves = tree_flatten((args, kwargs))[0]
    there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Elsewhere) and leaf.ndim]
    moves = func.namespace == "aten" and func.__name__.split(".")[0] in ("_to_copy", "copy_", "to")
    if there and here and not moves:
        raise RuntimeError(f"{func}: tensors on two devices, shapes {[t.shape for t in here]} lie on the CPU")
    plain_args, plain_kwargs = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    if asked:
        plain_kwargs["device"] = torch.device("cpu")
    out = func(*plain_args, **plain_kwargs)
    stays = asked or (bool(there) and (device is None or asked))
    known = {id(t.inner): t for t in there}
    return tree_map(lambda x: wrap(x, known) if stays and isinstance(x, torch.Tensor) else x, out)


def wrap(tensor, known):
    """The tensor's wrapper: an operation in place gives back the tensor it was called on."""
    return known.get(id(tensor)) if id(tensor) in known else Elsewhere(tensor)


def back(value):
    """The numbers, on the CPU."""
    return value.inner if isinstance(value, Elsewhere) else value
