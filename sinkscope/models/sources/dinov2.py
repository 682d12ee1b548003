"""DINOv2 ViT-S/14 (Oquab et al. 2024) out of an ONNX file of which it is the backbone.

Norms, biases, layer scales and the patch projection keep their names in the file. The matrices have none: each is the
second input of a ``MatMul`` node, which is named after its module, and is stored transposed. The position table is
stored in two constants, one for the class token and one for the patches.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

from sinkscope.errors import ModelError
from sinkscope.models import weights
from sinkscope.models.sources import cache
from sinkscope.models.sources.base import Checkpoint

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("sinkscope")

ROOT = "backbone."
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names of transformers before version 5, which the file holds, and those of today."""

IMAGES = {
    "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}  # fmt: skip
"""How images become pixels: the settings of facebook/dinov2-small."""


def checkpoint(path: Path, *, label: str, package: str) -> Checkpoint:
    """Return the folder that the file was converted to, converting it now if that was not done before.

    Raises:
        ModelError: the file is absent or damaged, holds another network, or the package ``onnx`` is not installed.
    """
    if not path.is_file():
        raise ModelError(f"load_model({label!r}): {path} is absent. Install the package again.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def make(folder: Path) -> dict[str, Any]:
        model = convert(path)
        cache.check_room(folder, sum(p.numel() * p.element_size() for p in model.parameters()))
        with weights.loading():
            model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES, indent=2) + "\n", encoding="utf-8")
        origin = f"backbone of {path.name} ({package}, ONNX, sha256 {digest[:12]})"
        return {"origin": origin, "file": path.name, "source": label}

    entry = cache.obtain(digest, make)
    return Checkpoint(str(entry.folder), local=True, label=label, origin=entry.origin)


def convert(path: Path) -> Dinov2Model:
    """Build the backbone with the weights of the file.

    Raises:
        ModelError: as :func:`checkpoint`.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ModelError(f"{path.name}: reading ONNX files needs the package onnx. Install it with: pip install onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path)).graph
    except (DecodeError, OSError) as error:
        raise ModelError(f"{path}: the ONNX file is truncated or damaged ({error}). Install it again.") from None
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
        use_mask_token=False,
    )  # fmt: skip
    model = Dinov2Model(config)
    try:
        model.load_state_dict(_state(graph))  # strict: every weight is there, and every weight of the file has a place
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: this is not the ViT-S/14 it should be: {weights.first_line(error)}") from None
    weights.check_finite(model, path.name)
    return model.eval()


def _state(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name: array for name, array in stored.items() if name.startswith(ROOT)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder") and node.input[1] in stored:
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = stored[node.input[1]].T
    tables = [array for array in stored.values() if array.ndim == 3 and array.shape[::2] == (1, 384)]
    one, patches = (
        next(a for a in tables if a.shape[1] == n and a is not state[ROOT + "embeddings.cls_token"]) for n in (1, 1369)
    )
    state[ROOT + "embeddings.position_embeddings"] = np.concatenate([one, patches], axis=1)
    return {_renamed(name): torch.tensor(array, dtype=torch.float32) for name, array in state.items()}


def _renamed(name: str) -> str:
    name = name.removeprefix(ROOT)
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
