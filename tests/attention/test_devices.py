"""Every path computes on the device of its call: no tensor is made without one, none is mixed with the CPU's."""

import ast
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch

import sinkscope.attention
from attention.calls import make, wants
from attention.fake_device import Device, Elsewhere, back
from sinkscope.attention import blockwise, merged, paths
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.primitives import DropWeights, ExtraKey, LogBias, Reweigh, ValueScale
from sinkscope.attention.rows import RowEdits
from sinkscope.attention.view import Wants

MAKERS = {
    "tensor", "as_tensor", "zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn", "randint",
    "scalar_tensor",
}  # fmt: skip
FOLDER = Path(sinkscope.attention.__file__).parent


def makers_without_device(source):
    """Lines of calls torch.MAKER(...) that name no device."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
            named = {word.arg for word in node.keywords}
            if "device" not in named and None not in named:
                yield node.lineno


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_tensor_is_made_without_a_device(path):
    lines = list(makers_without_device(path.read_text()))
    assert not lines, f"{path.name}: torch constructors without device= on lines {lines}"


def test_the_search_finds_such_a_line():
    assert list(makers_without_device("import torch\nx = torch.zeros(3)\ny = torch.zeros(3, device='cpu')")) == [2]


def there(value):
    """A copy of a call, a context or edits on the other device."""
    if isinstance(value, torch.Tensor):
        return Elsewhere(value.clone())
    if isinstance(value, dict):
        return {name: there(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(there(part) for part in value)
    if isinstance(value, Wants):
        return value.cut(there)
    if isinstance(value, torch.device):
        return torch.device("meta")
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: there(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def same(found, expected):
    assert set(found.values) == set(expected.values)
    for label, other in expected.values.items():
        assert isinstance(found[label], Elsewhere), f"{label} lies on the CPU"
        torch.testing.assert_close(back(found[label]), other, rtol=1e-6, atol=1e-6, equal_nan=True)


CALLS = {
    "causal": {}, "full": {"mask": "full"}, "padded": {"padding": "left"}, "window": {"mask": "window"},
    "cached": {"mask": "offset"}, "soft cap": {"softcap": 3.0}, "learned sinks": {"sinks": True},
    "sigmoid": {"normaliser": "sigmoid"}, "softmax1": {"normaliser": "softmax1", "padding": "right"},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_all_statistics_off_the_cpu(name):
    case = make(length=130, **CALLS[name])
    asked = wants(case)
    out, stats = blockwise.attend(case.call, asked, case.context)
    with Device():
        far, far_stats = paths.attend(there(case.call), there(asked), there(case.context))
    torch.testing.assert_close(back(far), out, rtol=1e-6, atol=1e-6)
    same(far_stats, stats)


def edits_of(kind, call):
    heads = call.query.shape[1]
    keys = torch.zeros(call.query.shape[0], heads, call.key.shape[2], dtype=torch.bool)
    keys[:, :, [0, 3]] = True
    many = torch.ones_like(keys)
    many[:, 0] = False
    rows = torch.arange(call.query.shape[2]).expand(call.query.shape[0], -1) > 4
    one, all_heads = torch.linspace(-1, 1, heads), torch.arange(heads) > 0
    dim = call.query.shape[-1]
    return {
        "bias": CallEdits(biases=[LogBias(keys=keys, value=one, queries=rows)]),
        "hide": CallEdits(biases=[LogBias(keys=keys, value=one, hide=True, keep_self=True)]),
        "hide many": CallEdits(biases=[LogBias(keys=many, value=one, hide=True, queries=rows)]),
        "drop, then bias": CallEdits(weights=[DropWeights(keys=keys), Reweigh(LogBias(keys=keys, value=one))]),
        "values": CallEdits(values=[ValueScale(keys)]),
        "null": CallEdits(null_logits=one),
        "extra": CallEdits(extra_keys=[ExtraKey(torch.ones(heads, dim), torch.ones(heads, dim), all_heads)]),
        "softmax1": CallEdits(normalisers={"softmax1": all_heads}),
        "relu": CallEdits(normalisers={"relu": all_heads}),
        "gate": CallEdits(gates=[lambda out: out * 2]),
    }[kind]


EDITS = ("bias", "hide", "hide many", "drop, then bias", "values", "null", "extra", "softmax1", "relu", "gate")


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("kind", EDITS)
def test_every_edit_off_the_cpu(kind, statistics):
    case = make(length=20)
    asked = wants(case) if statistics else Wants()
    out, _ = blockwise.attend(case.call, asked, case.context, edits_of(kind, case.call))
    edits = edits_of(kind, case.call)
    with Device(), torch.no_grad():
        call = there(case.call)
        far, stats = paths.attend(call, there(asked), there(case.context), there(edits))
        paths.attend(call, there(asked), there(case.context), there(edits).neutral())
        parts = RowEdits([(slice(0, 1), there(edits_of(kind, first_row(case.call)))), (slice(1, 2), None)])
        parts.attend(call, there(asked), there(case.context), paths.attend)
    torch.testing.assert_close(back(far), out, rtol=1e-5, atol=1e-5)
    assert stats.path in ("blockwise", "augdim")


def first_row(call):
    return replace(call, query=call.query[:1], key=call.key[:1], value=call.value[:1])


def test_the_path_that_is_for_the_cpu_alone_would_run_elsewhere_too(monkeypatch):
    """Its tensors follow the call; only the kernel it needs has another name on another device."""
    case = make(length=20)
    edits = edits_of("bias", case.call)
    with torch.no_grad():
        out, _ = merged.attend(case.call, edits, 4)
    monkeypatch.setattr(merged, "flash", lambda *a: tuple(Elsewhere(t) for t in flash(*map(back, a))))
    flash = __import__("sinkscope.attention.fused", fromlist=["flash"]).flash
    with Device(), torch.no_grad():
        far, _ = merged.attend(there(case.call), there(edits), 4)
    torch.testing.assert_close(back(far), out, rtol=1e-6, atol=1e-6)


def test_the_fake_device_refuses_to_mix():
    with Device():
        far = torch.ones(3, device="meta")
        assert back(far + 1).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="two devices"):
            far + torch.ones(3)
