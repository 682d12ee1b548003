"""Videos as prompts: tokens frame by frame, maps equal to the encoder's own; and ViT-MAE, which hides patches."""

import numpy as np
import pytest
import torch
import transformers
from parity.ledger.reference import Eager

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.testing.tiny import randomise

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
}  # fmt: skip


def made(cls, config):
    torch.manual_seed(0)
    network = getattr(transformers, cls)(config)
    randomise(network, 0)
    return sk.load_model(network.float().eval())


def videomae():
    return made("VideoMAEModel", transformers.VideoMAEConfig(**SMALL, patch_size=4, num_frames=4, tubelet_size=2))


def vivit():
    return made("VivitModel", transformers.VivitConfig(**SMALL, num_frames=4, tubelet_size=[2, 8, 8]))


@pytest.mark.parametrize(("build", "first", "count", "side"), [(videomae, 0, 32, 4), (vivit, 1, 9, 2)])
def test_tokens_are_patches_of_a_few_frames(build, first, count, side):
    model = build()
    values = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = sk.Prompts.from_inputs({"pixel_values": values}, model)
    assert prompts.lengths == (count, count)
    assert prompts.tokens[0][:first] == ("[CLS]",) * first
    assert prompts.tokens[0][first] == "t0r0c0"
    assert prompts.tokens[0][-1] == f"t1r{side - 1}c{side - 1}"
    ds = sk.run(model, prompts, [sk.AttentionMap([0, 1], range(4)), sk.KeyMass()], batch_size=2)
    heard = Eager(model.model).run(lambda: model.model(pixel_values=values))
    for layer, call in enumerate(heard.calls):
        np.testing.assert_allclose(ds.attention.sel(layer=layer), call.weights, atol=2e-5)
    np.testing.assert_array_equal(ds.grid_row.values[0, first:], np.tile(np.repeat(np.arange(side), side), 2))
    # The frames count: the second half of the tokens is of other pictures.
    swapped = sk.Prompts.from_inputs({"pixel_values": values.flip(1)}, model)
    assert np.abs(sk.run(model, swapped, [sk.KeyMass()]).key_mass - ds.key_mass).max() > 1e-3


def test_pictures_are_no_videos():
    model = videomae()
    with pytest.raises(PromptError, match=r"VideoMAEModel takes videos \(video, frame, channel, height, width\)"):
        sk.Prompts.from_inputs({"pixel_values": torch.zeros(1, 3, 16, 16)}, model)
    with pytest.raises(PromptError, match=r"from_images: VideoMAEModel takes videos\. Give its processor's output"):
        sk.Prompts.from_images([torch.zeros(3, 16, 16)], model)


def test_patches_that_are_left_out_at_random_are_refused_and_whole_images_read_in_order():
    config = transformers.ViTMAEConfig(
        **SMALL, patch_size=4, decoder_num_attention_heads=4, decoder_hidden_size=32, decoder_num_hidden_layers=1
    )
    model = made("ViTMAEModel", config)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(PromptError, match=r"leaves 75% of the patches out at random.*config\.mask_ratio = 0"):
        sk.Prompts.from_images([pixels[0]], model)
    model.model.config.mask_ratio = 0.0
    prompts = sk.Prompts.from_images([pixels[0]], model)
    assert prompts.lengths == (17,)
    ds = sk.run(model, prompts, [sk.AttentionMap([0, 1], range(4))])
    rising = torch.linspace(0, 1, 16)[None]
    heard = Eager(model.model).run(lambda: model.model(pixel_values=pixels, noise=rising))
    for layer, call in enumerate(heard.calls):
        np.testing.assert_allclose(ds.attention.sel(layer=layer), call.weights, atol=2e-5)
    with pytest.raises(PromptError, match="takes 'pixel_values' alone"):
        sk.Prompts.from_inputs({"pixel_values": pixels, "noise": rising.flip(1)}, model)
