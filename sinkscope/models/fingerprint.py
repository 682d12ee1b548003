"""What a model computes, as a hash: its weights, its configuration, and whatever else about it changes its numbers.

A result that was computed before is only as good as the knowledge that the model is still the same. A parameter's
version counter does not say so: changes through ``.data``, ``.to()`` or a NumPy view leave it alone. So the bytes are
hashed anew whenever the cache of a sweep is used. xxh3 reads them at the speed of memory (figures in
docs/decisions.md), which is less than a forward pass of one token costs.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from types import FunctionType, MethodType
from typing import Any

import torch
import xxhash
from transformers import PreTrainedConfig, PreTrainedModel

from sinkscope.models.bytecode import Bytecode

VOLATILE = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation_autoset",
    "distributed_config",
}  # fmt: skip
"""Config entries that do not change what the model computes."""
OWN_HOOKS = ("transformers", "accelerate", "sinkscope")
"""Packages whose hooks collect or move tensors and leave the numbers as they are."""
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)
_BOOKKEEPING = {
    *vars(torch.nn.Module()), "name_or_path", "warnings_issued", "config", "generation_config", "rope_deltas",
}  # fmt: skip
"""Attributes of a module that say nothing about what it computes, or are left over from its last pass."""


def fingerprint(network: PreTrainedModel) -> str:
    """Return a SHA-256, in hex, over configuration and names, shapes, types and bytes of all parameters and buffers.

    Equal for the same weights loaded twice, in another process or on another device.
    """
    digest = hashlib.sha256(_settings(network.config).encode())
    tensors = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {_tensor(tensor)};".encode())
    return digest.hexdigest()


def behaviour(network: PreTrainedModel) -> str:
    """Return a SHA-256, in hex, over what weights and configuration do not say.

    Classes of all modules and the byte code of their methods and of what those call beside them, plain attributes of
    modules (which adapter is active, its scaling, an epsilon), tensors that are no buffers, configurations that a
    module has for itself, versions of the packages the modules come from, and the process's numerical settings.
    """
    digest = hashlib.sha256(json.dumps(_numerics(), sort_keys=True).encode())
    packages, classes = set(), set()
    known = _whole_configs(network)
    for name, module in network.named_modules():
        kind = type(module)
        packages.add(kind.__module__.partition(".")[0])
        classes.add(kind)
        own = {key: _said(value) for key, value in vars(module).items() if not _is_bookkeeping(module, key)}
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__} {sorted(own.items())};".encode())
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and id(config) not in known:
            known[id(config)] = config
            digest.update(f"{name} {_settings(config)};".encode())
    code = Bytecode()
    for kind in sorted(classes, key=lambda each: f"{each.__module__}.{each.__qualname__}"):
        code.add_class(kind)
    digest.update(code.hexdigest().encode())
    digest.update(json.dumps({name: _version(name) for name in sorted(packages)}).encode())
    return digest.hexdigest()


def foreign_hooks(network: torch.nn.Module) -> list[str]:
    """Return the modules whose numbers somebody's code may change in a way that no hash sees.

    These are modules with a forward hook or forward pre-hook that is not of ``OWN_HOOKS``, with a ``forward`` put on
    the instance, or ``"every module"`` for hooks that torch keeps for all.
    """
    everywhere = [torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks]
    found = ["every module"] if any(_foreign(hook) for hooks in everywhere for hook in hooks.values()) else []
    for name, module in network.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        replaced = vars(module).get("forward")
        if any(_foreign(hook) for hook in hooks) or (replaced is not None and _foreign(replaced)):
            found.append(name or "the model")
    return found


def _is_bookkeeping(module: torch.nn.Module, name: str) -> bool:
    """Whether an attribute is the library's own account of a model: how it was loaded, what was installed on it."""
    return name in _BOOKKEEPING or (isinstance(module, PreTrainedModel) and name.startswith("_"))


def _foreign(function: Any) -> bool:
    inner = getattr(function, "func", function)  # of a functools.partial
    module = getattr(inner, "__module__", None) or type(inner).__module__
    return module.partition(".")[0] not in OWN_HOOKS


def _tensor(tensor: torch.Tensor) -> str:
    """Say type, shape and bytes of a tensor; of a quantised one, those of the plain tensors it is made of."""
    if (whole := getattr(tensor, "full_tensor", None)) is not None:
        tensor = whole()  # cut over ranks, all of which ask: equal to the model in one piece
    head = f"{tuple(tensor.shape)} {tensor.dtype}"
    if tensor.is_meta:
        return f"{head} meta"
    if tensor.is_quantized:
        return f"{head} {_tensor(tensor.int_repr())} {_tensor(tensor.dequantize())}"
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        names, context = flatten()
        return f"{head} {[(name, _tensor(getattr(tensor, name))) for name in names]} {context!r}"
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{head} {xxhash.xxh3_128_hexdigest(data.numpy().data)}"


def _said(value: Any) -> str:
    """Say a value so that equal ones are said equally in every process.

    Of functions the byte code is said, of plain holders of values those, of other objects only the class.
    """
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, Mapping):
        return str(sorted((str(key), _said(each)) for key, each in value.items()))
    if isinstance(value, set | frozenset):
        return str(sorted(_said(each) for each in value))
    if isinstance(value, list | tuple):
        return str([_said(each) for each in value])
    if isinstance(value, FunctionType | MethodType | functools.partial):
        code = Bytecode()
        code.add(value)
        return code.hexdigest()
    held = getattr(value, "__dict__", {}) if not isinstance(value, type | torch.nn.Module) else {}
    plain = sorted((str(key), repr(each)) for key, each in held.items() if isinstance(each, _PLAIN))
    return f"{getattr(value, '__qualname__', type(value).__qualname__)} {plain}"


def _numerics() -> dict[str, str]:
    return {
        "matmul precision": torch.get_float32_matmul_precision(),
        "autocast": str(
            [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        ),
        "tf32": str((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)),
        "default type": str(torch.get_default_dtype()),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        names = packages_distributions().get(package, [])
        return version(names[0]) if names else ""


def _settings(config: PreTrainedConfig) -> str:
    return json.dumps(_stable(config.to_dict()), sort_keys=True, default=str)


def _whole_configs(network: PreTrainedModel) -> dict[int, Any]:
    """The configurations that the network's own holds, by identity: what the fingerprint says already."""
    found: dict[int, Any] = {}
    todo: list[Any] = [network.config]
    while todo:
        config = todo.pop()
        if id(config) not in found:
            found[id(config)] = config
            todo += [each for each in vars(config).values() if isinstance(each, PreTrainedConfig)]
    return found


def _stable(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {str(key): _stable(value) for key, value in entry.items() if key not in VOLATILE}
    return [_stable(value) for value in entry] if isinstance(entry, list | tuple) else entry


def visible_state(network: PreTrainedModel) -> tuple[Any, ...]:
    """Return what can be seen of a network's state without reading its bytes: places, versions and types of tensors.

    Changes through ``.data`` or a NumPy view are not seen.
    """
    tensors = [*network.parameters(), *network.buffers()]
    seen = [(id(t), t.dtype, _place(t), 0 if t.is_inference() else t._version) for t in tensors]
    return (_settings(network.config), *seen)


def outer_state(network: PreTrainedModel) -> tuple[Any, ...]:
    """Return :func:`visible_state` and how many hooks there are: what may stop a trial run, and be mended since."""
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    return (*visible_state(network), *hooks)


def _place(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a subclass without storage of its own
        return 0
