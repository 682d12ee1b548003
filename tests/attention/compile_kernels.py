"""Compiles the kernels of the GPU path for a GPU that need not be there; prints the shared memory of each, in bytes."""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attention.calls import make
from sinkscope.attention import kernels
from sinkscope.attention.launch import Tiling

POINTERS = {
    "fp32": ("lse", "total", "one_hot", "numbers", "shares", "sums", "counted", "step", "acts"),
    "i8": ("chosen", "real"),
    "i32": ("first_of", "stop_of", "block_first", "block_stop", "column_of"),
    "i64": ("own",),
}
TYPES = {name: f"*{kind}" for kind, names in POINTERS.items() for name in names} | {"scale": "fp32", "cap": "fp32"}


def compiled(name, dtype, dim, capability):
    """One kernel with everything switched on, as it is launched for vectors of this size."""
    kernel = getattr(kernels, name)
    call = make(length=2, dim=dim, dtype=dtype).call
    tiling = Tiling.of(call, name)
    constants = {
        "DIM": dim, "DIM2": dim, "VDIM": dim, "VDIM2": dim, "ROLES": 9, "ROLES2": 16, "CHOSEN": True, "TOP": True,
        "SPLIT": dtype != torch.float32, "TERMS": 2, "BEFORE": 1, "CAPPED": True, "PADDED": True,
        "BM": tiling.queries, "BN": tiling.keys,
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    own = {name: "*fp32" if dtype == torch.float32 else "*bf16" for name in ("query", "key", "value", "out")}
    signature = {
        each: "constexpr" if each in constants else (TYPES | own).get(each, "i32") for each in kernel.arg_names
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": tiling.warps})
    assert done.asm["cubin"]
    return done.metadata.shared


print(json.dumps({
    f"{name}, {dtype}, {dim}": compiled(name, dtype, dim, capability)
    for name in ("forward", "rows", "columns")
    for dtype, dim, capability in (
        (torch.bfloat16, 128, 90), (torch.bfloat16, 256, 80), (torch.float32, 128, 80), (torch.float32, 256, 90),
    )
}))  # fmt: skip
