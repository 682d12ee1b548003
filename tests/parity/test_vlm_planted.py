"""Planted visual sinks are found where they are, and moving attention off them does what a dense reference says."""

from functools import cache

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import generate, testing
from sinkscope.errors import ModelError
from sinkscope.roles import ROLE_INDEX
from tests.edits.dense import Reference, dense_hidden

FAMILIES = ("llava", "qwen2_5_vl")


@cache
def planted(family, seed=0):
    return testing.planted_visual_sink(seed, family)


def move(truth, **settings):
    return sk.Redistribute(tau=5.0, dims=truth.dims, **({"start_layer": 1} | settings))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_planted_dimension_and_tokens_are_found(family, seed):
    model, prompts, truth = planted(family, seed)
    probes = [sk.MassiveActivations(top=10), sk.ResidualNorm(), sk.SinkDims(truth.dims)]
    reading = sk.run(model, prompts, probes)
    assert sk.metrics.discover_sink_dims(reading, definition="width_relative")["dim"].values.tolist() == truth.dims
    assert float(reading["top_value"].sel(site="0.post").isel(prompt=0, rank=0)) == pytest.approx(truth.value, rel=1e-4)
    sinks = sk.metrics.phi_sinks(reading, "width_relative", roles="image")
    for index, wanted in enumerate(truth.tokens):
        for site in ("0.post", "1.post", "2.post"):
            found = np.flatnonzero(sinks.isel(prompt=index).sel(site=site).values)
            assert found.tolist() == list(wanted), (index, site)
        assert not sinks.isel(prompt=index).sel(site="embed").any()


@pytest.mark.parametrize("family", FAMILIES)
def test_sinks_lie_on_the_white_pixels_of_the_picture(family):
    model, prompts, truth = planted(family)
    reading = sk.run(model, prompts, [sk.SinkDims(truth.dims)])
    sinks = sk.metrics.phi_sinks(reading, "width_relative", roles="image").sel(site="1.post")
    for index, picture in enumerate(truth.images):
        pixels = np.asarray(picture).mean(-1)
        covered = np.zeros(pixels.shape, dtype=bool)
        at = reading["phi"].isel(prompt=index, key=np.flatnonzero(sinks.isel(prompt=index).values))
        edges = zip(*(at[f"box_{side}"].values for side in ("left", "top", "right", "bottom")), strict=True)
        boxes = [tuple(round(float(edge)) for edge in box) for box in edges]
        assert boxes == list(truth.boxes[index])
        for left, top, right, bottom in boxes:
            covered[top:bottom, left:right] = True
        np.testing.assert_array_equal(covered, pixels > 200)


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_heads_are_told_from_heads_that_look_at_the_image(family):
    model, prompts, truth = planted(family)
    reading = sk.run(model, prompts, [sk.AttentionMap(layers=range(4), heads=range(4)), sk.SinkDims(truth.dims)])
    sinks = sk.metrics.phi_sinks(reading, "width_relative", roles="image")
    at = sk.metrics.at_block_inputs(sinks, reading["layer"].values.tolist())
    rows = sk.metrics.image_centric_heads(reading, sinks=at, rho=0.5).isel(prompt=[0, 1, 2])
    chosen = rows["selected"].any(["prompt", "query"])
    for layer, head in truth.heads:
        assert not bool(chosen.sel(layer=layer, head=head))
    for layer, head in truth.image_heads:
        assert bool(chosen.sel(layer=layer, head=head))


def reference_weights(truth, roles, first_text_layer, edit):
    """VAR on a dense map, row by row, by the definition of the paper or of the released code."""
    image = roles == ROLE_INDEX["image"]
    last = int(np.flatnonzero(image)[-1])
    sinks = np.zeros(len(roles), dtype=bool)
    sinks[list(truth)] = True

    def weights(row):
        found = row.softmax()
        layer = row.layer - first_text_layer
        if layer < edit.start_layer or layer > 3 - int(edit.skip_last) or not (sinks & image).any():
            return found
        out = found.clone()
        for head in range(found.shape[1]):
            for query in range(last + 1, len(roles)):
                line = found[0, head, query].numpy()
                mass, clear = line[image].sum(), line[image & ~sinks].sum()
                share = clear / mass
                act = share >= edit.rho if edit.rule == "non_sink" else 1 - share <= edit.rho
                if mass < edit.min_image_mass or not act:
                    continue
                part = edit.p if edit.rule == "non_sink" else 1 - edit.p
                budget = part * line[sinks].sum()
                new = np.where(sinks, (1 - part) * line, line)
                new = new + np.where(image & ~sinks, budget * line / clear, 0.0)
                out[0, head, query] = torch.from_numpy(new)
        return out

    return weights


@pytest.mark.parametrize("settings", [{}, {"rule": "sink", "p": 0.3}, {"rho": 0.9, "skip_last": False}], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_redistributing_changes_the_logits_as_a_dense_reference_says(family, settings):
    model, prompts, truth = planted(family)
    edit = move(truth, **settings)
    plain = sk.run(model, prompts, [sk.Logits("all")])["logits"]
    edited = sk.run(model, prompts, [sk.Logits("all")], [edit])["logits"]
    head = model.model.lm_head.weight.double()
    for index in range(len(prompts)):
        batch, length = prompts.batch([index]), prompts.lengths[index]
        sinks = (truth.text_sink, *truth.tokens[index])
        weights = reference_weights(sinks, prompts.roles[index], 3, edit)
        with torch.no_grad():
            wanted = (dense_hidden(model, batch, Reference(weights=weights))[0] @ head.T).numpy()
        found, before = (array.isel(prompt=index)[:length].values for array in (edited, plain))
        assert np.abs(found - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())
        moved = np.abs(found - before).max()
        assert (moved > 1e-2) if truth.tokens[index] else (moved == 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_the_edit_equals_recomputation(family):
    model, prompts, truth = planted(family)
    edits = [move(truth)]
    longer = generate(model, prompts, edits, max_new_tokens=4, eos_token_id=-1)
    again = sk.run(model, longer, [sk.Logits("all")], edits)["logits"]
    for row, start in enumerate(prompts.lengths):
        chosen = again.isel(prompt=row)[start - 1 : start + 3].argmax("vocab").values
        assert chosen.tolist() == longer.ids[row][start:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sample_leaves_anything_to_the_next(family):
    model, prompts, truth = planted(family)
    edits = [move(truth)]
    together = sk.run(model, prompts, [sk.Logits()], edits)["logits"]
    batched = sk.run(model, prompts, [sk.Logits()], edits, batch_size=4)["logits"]
    np.testing.assert_allclose(batched, together, atol=2e-5)
    turned = sk.run(model, prompts.subset([3, 2, 1, 0]), [sk.Logits()], edits)["logits"]
    np.testing.assert_array_equal(turned.values[::-1], together.values)
    longer = generate(model, prompts, edits, max_new_tokens=4, eos_token_id=-1)
    for row in range(len(prompts)):
        alone = generate(model, prompts.subset([row]), edits, max_new_tokens=4, eos_token_id=-1)
        np.testing.assert_array_equal(longer.ids[row], alone.ids[0])


def test_the_sink_follows_the_picture():
    first, second = planted("llava", 0), planted("llava", 2)
    assert first[2].tokens[0] != second[2].tokens[0]
    assert first[2].tokens[3] == second[2].tokens[3] == ()


def test_another_family_is_refused():
    with pytest.raises(
        ModelError, match=r"planted_visual_sink\(family='clip'\): families are 'llava' and 'qwen2_5_vl'"
    ):
        testing.planted_visual_sink(family="clip")
