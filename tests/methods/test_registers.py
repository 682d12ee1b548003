"""Register neurons: a planted unit is found, moved to an added token, and a model without outliers has none."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import MetricError, PromptError, UnsupportedModelError
from sinkscope.methods.registers import held_at_mean, moved, outlier_threshold, register_neurons, with_registers
from sinkscope.methods.residual import residual_stream

UNIT, LAYER = 7, 1


@pytest.fixture(scope="module")
def case():
    """A unit of block 1 fires at the white patch of each picture and writes a state of large norm there."""
    network = testing.tiny("dinov2")
    with torch.no_grad():
        projection = network.embeddings.patch_embeddings.projection
        projection.weight[0] = 0.5
        mlp = network.encoder.layer[LAYER].mlp
        mlp.fc1.weight[UNIT] = 0.0
        mlp.fc1.weight[UNIT, 0], mlp.fc1.bias[UNIT] = 10.0, -30.0
        mlp.fc2.weight[:, UNIT] = 0.0
        mlp.fc2.weight[3, UNIT] = 400.0
    model = sk.load_model(network)
    size, patch = network.config.image_size, network.config.patch_size
    pixels = np.random.default_rng(0).normal(scale=0.05, size=(6, 3, size, size)).astype(np.float32)
    whites = []
    for which, picture in enumerate(pixels):
        row, column = divmod(3 + 2 * which, size // patch)
        picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 2.0
        whites.append(3 + 2 * which)
    return model, sk.Prompts.from_images(list(pixels), model), whites


def test_the_vector_of_the_sheet():
    hidden = torch.tensor([[0.0, 1, 2], [5, -1, 0], [0, -9, 1], [0, 0, 0]])
    patches = torch.tensor([1, 2])
    paper, released = (moved(hidden, [0, 1], patches, joint=joint) for joint in (False, True))
    np.testing.assert_array_equal(paper, [[0, 1, 2], [0, 0, 0], [0, 0, 1], [5, -9, 0]])
    np.testing.assert_array_equal(released, [[0, 1, 2], [0, 0, 0], [0, 0, 1], [-9, -9, 0]])
    np.testing.assert_array_equal(moved(hidden, [0, 1], patches, register=None, fill="keep"), hidden)
    np.testing.assert_array_equal(moved(hidden, [1], patches, register=None, fill="mean")[1:3, 1], [-5, -5])


def test_the_planted_unit_is_found_and_taken_to_the_added_token(case):
    model, prompts, whites = case
    found = register_neurons(model, prompts, top=3)
    assert (int(found.layer[0]), int(found.unit[0])) == (LAYER, UNIT)
    assert float(found.activation[0]) > 3 * float(found.activation[1])
    assert float(found.elsewhere[0]) < 0.1
    assert (found.attrs["outliers"], found.attrs["images"]) == (6, 6)
    one = found.isel(neuron=[0])
    norms = with_registers(model, prompts, one)
    patches = norms["norm"].sel(layer=LAYER).values[:, norms["role"].values == "image"]
    plain = sk.run(model, prompts, [sk.ResidualNorm()]).residual_norm.sel(site=f"{LAYER}.post").values
    for which, white in enumerate(whites):
        assert plain[which, 1 + white] > found.attrs["threshold"]
        assert plain[which].argmax() == 1 + white
    assert patches.max() < found.attrs["threshold"]
    assert (norms["norm"].sel(layer=LAYER).values[:, -1] > found.attrs["threshold"]).all()
    assert norms["role"].values[-1] == "added"
    alone = with_registers(model, prompts, one, register=False)
    assert alone.sizes["token"] == norms.sizes["token"] - 1
    other = with_registers(model, prompts, one.assign(unit=one.unit + 1))
    assert other["norm"].sel(layer=LAYER).values[:, 1:-1].max() > found.attrs["threshold"]


def test_where_every_patch_is_an_outlier_there_is_nothing_elsewhere(case):
    model, prompts, _ = case
    found = register_neurons(model, prompts, threshold=0.0, top=2)
    assert np.isnan(found["elsewhere"]).all()
    assert np.isfinite(found["activation"]).all()


def test_without_outliers_there_is_no_neuron(case):
    model, prompts, _ = case
    none = register_neurons(model, prompts, threshold=1e9)
    assert none.sizes["neuron"] == 0
    assert none.attrs["images"] == 0
    same = with_registers(model, prompts, none, register=False)
    np.testing.assert_allclose(same["cls_cosine"], 1, atol=1e-6)


def test_the_threshold_is_the_valley_or_three_deviations():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(50, 5, 300), rng.normal(300, 20, 30)])
    assert 80 < outlier_threshold(two) < 260
    one = rng.normal(50, 5, 300)
    assert outlier_threshold(one) == pytest.approx(one.mean() + 3 * one.std())


def test_errors(case):
    model, prompts, _ = case
    text = sk.load_model(testing.tiny("llama"))
    with pytest.raises(UnsupportedModelError, match="registers are added to a vision encoder"):
        register_neurons(text, sk.Prompts.from_ids([[1, 5]], text))
    with pytest.raises(UnsupportedModelError, match=r"use one of \['zero', 'mean', 'keep'\]"):
        with_registers(model, prompts, register_neurons(model, prompts), fill="clip")


def test_tokens_are_held_at_their_mean_over_other_pictures(case):
    model, prompts, _ = case
    reference, keys = prompts.subset([0, 1, 2]), [2, 5]
    edits = held_at_mean(model, reference, keys)
    plain = [residual_stream(model, prompts, index) for index in range(4)]
    held = residual_stream(model, prompts, 3, edits)
    depth = len(edits) + 1
    for layer in range(depth - 1):
        mean = np.mean([state[f"{layer}.post"][keys] for state in plain[:3]], axis=0)
        np.testing.assert_allclose(held[f"{layer}.post"][keys], mean, rtol=1e-5, atol=1e-5)
        assert not np.allclose(plain[3][f"{layer}.post"][keys], mean, atol=1e-3), "another picture differs there"
    free = [at for at in range(len(held["0.post"])) if at not in keys]
    np.testing.assert_allclose(held["0.post"][free], plain[3]["0.post"][free], rtol=1e-6)
    assert not np.allclose(held[f"{depth - 1}.post"][0], plain[3][f"{depth - 1}.post"][0], atol=1e-4)


def test_what_every_picture_has_alike_costs_nothing_at_its_mean(case):
    model, prompts, _ = case
    same = prompts.subset([0])
    held = residual_stream(model, same, 0, held_at_mean(model, same, [2, 5]))
    for name, state in residual_stream(model, same, 0).items():
        np.testing.assert_allclose(held[name], state, rtol=1e-4, atol=1e-4)


def test_prompts_of_several_lengths_have_no_one_token_at_a_place():
    model = sk.load_model(testing.tiny("llama"))
    with pytest.raises(PromptError, match=r"held_at_mean: prompts of \[2, 3\] tokens"):
        held_at_mean(model, sk.Prompts.from_ids([[1, 5], [1, 5, 6]], model), "first")


def test_a_model_of_one_block_has_nothing_to_hold():
    model = sk.load_model("zoo:bb-1l")
    with pytest.raises(UnsupportedModelError, match=r"held_at_mean: zoo:bb-1l has one block"):
        held_at_mean(model, sk.Prompts.from_ids([[1, 2, 3], [2, 3, 4]], model), "first")


def test_what_cannot_be_searched_is_refused(case):
    model, prompts, _ = case
    for wrong in ({"layer": 99}, {"layer": -1}, {"top_layer": 99}, {"layer": "1"}, {"top": 0}, {"top": 1.5}):
        with pytest.raises(UnsupportedModelError, match=rf"register_neurons\({next(iter(wrong))}="):
            register_neurons(model, prompts, **wrong)
    for call in (register_neurons, held_at_mean):
        with pytest.raises(PromptError, match=rf"{call.__name__}: expected Prompts, got the text 'a.png'"):
            call(model, "a.png")
    for neurons in (None, [7], register_neurons(model, prompts).drop_vars("unit")):
        with pytest.raises(PromptError, match=r"with_registers\(neurons=.*give what register_neurons returns"):
            with_registers(model, prompts, neurons)


@pytest.mark.parametrize("norms", [[], [np.nan], "a", None])
def test_norms_that_are_none_have_no_threshold(norms):
    with pytest.raises(MetricError, match="outlier_threshold"):
        outlier_threshold(norms)
