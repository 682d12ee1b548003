"""The two models of pretrained parts are the networks of their recipes, and readings are what transformers gives."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sinkscope as sk
from sinkscope import zoo
from sinkscope.tasks import photo_scenes
from sinkscope.tasks import scenes as data


@pytest.fixture(scope="module")
def question():
    """One question about a held-out picture: scene, question."""
    scene = photo_scenes.held_out(1, first=1 << 16)[0]
    return scene, data.ask(scene, "colour", np.random.default_rng(0))


@pytest.mark.parametrize("name", ["vlm-smol", "vlm-smol-sinks"])
@torch.no_grad()
def test_it_is_the_network_of_its_recipe(need, question, name):
    need("dinov2-small")
    need("smollm2-135m")
    from recipes import vision_smol_model as parts

    scene, asked = question
    model = sk.load_model(f"zoo:{name}")
    prompts = sk.Prompts.from_chat([{"image": scene.image(), "text": asked.text, "answer": asked.answer}], model)
    roles = [sk.roles.ROLES[int(role)] for role in prompts.roles[0]]
    assert (roles.count("image"), roles[-1], roles[0]) == (256, "answer", "bos")
    assert (int(np.nanmax(prompts.grids[0].row)), int(np.nanmax(prompts.grids[0].col))) == (15, 15)

    network = parts.build(0)
    own = parts.add_adapter(network, 16, 0)
    for weight, value in load_file(zoo.path(name) / "adapter.safetensors").items():
        own[weight].copy_(value)
    packed = parts.Packer(parts.load_tokenizer())([(asked.text, asked.answer)])
    assert prompts.ids[0].tolist() == packed["ids"][0, :-1].tolist(), "all but the end of the turn"
    wanted = network.lm_head(parts.states(network, packed, parts.features(network, scene))[-2])
    ds = sk.run(model, prompts, [sk.Logits(), sk.SinkDims((507,)), sk.KeyMass(queries="last")])
    np.testing.assert_allclose(ds["logits"].values[0, -1], wanted.numpy(), atol=1e-4)

    given = {"input_ids": torch.tensor(prompts.ids[0])[None], "pixel_values": parts.pixel_values(scene)}
    model.model.set_attn_implementation("eager")
    out = model.model(**given, output_attentions=True, output_hidden_states=True)
    states = out.hidden_states[4][0].double()  # input of block 4
    phi = states[:, 507].abs() / states.square().mean(-1).sqrt()
    found = sk.metrics.at_block_inputs(ds["phi"], [4]).isel(prompt=0, layer=0)
    np.testing.assert_allclose(found.values, phi.numpy(), rtol=1e-4, atol=1e-4)
    maps = torch.stack(out.attentions)[:, 0, :, -1]
    mass = ds["key_mass"].isel(prompt=0).transpose("layer", "head", "key")
    np.testing.assert_allclose(mass.values, maps.numpy(), atol=1e-4)


def test_one_keeps_visual_sinks_and_the_other_has_none(need):
    need("dinov2-small")
    need("smollm2-135m")
    scenes = [scene for scene in photo_scenes.held_out(12, first=1 << 17) if scene.background == "photograph"][:4]
    items = [{"image": scene.image(), "text": "How many shapes are there?"} for scene in scenes]
    for name, some in (("vlm-smol", False), ("vlm-smol-sinks", True)):
        model = sk.load_model(f"zoo:{name}")
        ds = sk.run(model, sk.Prompts.from_chat(items, model), [sk.SinkDims((507,))])
        phi = sk.metrics.at_block_inputs(ds["phi"], [6]).where(ds["token_role"] == "image")
        assert bool((phi > 20).any()) == some
