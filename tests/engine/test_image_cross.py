"""Cross-attention to images as a tower: the model's own eager maps, edits against float64, generation, refusals."""

import copy
import math
from dataclasses import replace
from functools import cache

import crossing_models as made
import numpy as np
import pytest
import torch
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from vlm_models import image

import sinkscope as sk
from sinkscope.attention import seam
from sinkscope.errors import EditError, ProbeError, PromptError

NAMES = ("mllama", "idefics", "latents")
LAYERS = {"mllama": [1, 3], "idefics": [0, 2], "latents": [0, 2]}


@cache
def handle(name):
    return {"mllama": made.mllama, "idefics": made.idefics, "latents": lambda: made.idefics(resampler=True)}[name]()


@cache
def prompts(name):
    model = handle(name)
    if name != "mllama":
        return sk.Prompts.from_inputs(made.idefics_inputs(), model)
    items = [
        {"image": image(40, 16), "text": "What color is the square?"},
        {"image": image(12, 12), "text": "the cat sat. You are"},
    ]  # fmt: skip
    return sk.Prompts.from_chat(items, model)


def lengths(name):
    return prompts(name).lengths


def inputs(name, dtype=torch.float64):
    given = prompts(name)
    batch = given.batch(range(len(given)))
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch.inputs.items()}


REFERENCE = "crossing_reference"
_edit, _seen = {}, {}


def reference(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Softmax attention in the type of the inputs; ``_edit`` says by module what is changed, ``_seen`` keeps maps."""
    how, heads = _edit.get(id(module), (None, None))
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    alone = torch.zeros(1, dtype=torch.bool)
    if attention_mask is not None:
        low = attention_mask[..., : key.shape[2]] <= torch.finfo(logits.dtype).min / 2
        alone = low.all(-1, keepdim=True)  # a row that sees no image; IDEFICS throws its output away
        logits = logits.masked_fill(low & ~alone, -math.inf)
    acts = torch.ones(query.shape[1], dtype=torch.bool) if heads is None else torch.zeros(query.shape[1]).bool()
    if heads is not None:
        acts[list(heads)] = True
    acts = acts[None, :, None]
    if how == "mask":
        logits[..., 0] = torch.where(acts, -math.inf, logits[..., 0])
    if how == "scale":
        logits[..., 0] = torch.where(acts, logits[..., 0] + math.log(0.3), logits[..., 0])
    weights = logits.softmax(-1)
    if how == "drop":
        weights = torch.cat([torch.where(acts[..., None], 0.0, weights[..., :1]), weights[..., 1:]], -1)
    _seen.setdefault(id(module), []).append(weights.masked_fill(alone, 0.0))
    if how == "zero":
        value = torch.cat([torch.where(acts[..., None], 0.0, value[:, :, :1]), value[:, :, 1:]], 2)
    out = weights @ value
    if how == "gate":
        out = torch.where(acts[..., None], 0.5 * out, out)
    return out.transpose(1, 2).contiguous(), weights


AttentionInterface.register(REFERENCE, reference)
AttentionMaskInterface.register(REFERENCE, eager_mask)


@cache
def double(name):
    network = copy.deepcopy(handle(name).model).double()
    network.set_attn_implementation(REFERENCE)
    for config in seam.configs(network):
        config._attn_implementation_internal = REFERENCE
    return network


def logits_of(name, how=None, layers=(), heads=None):
    """Logits of the double model, whose named cross-attention layers are changed, and its maps of these."""
    network, tower = double(name), handle(name).backend.towers["cross"]
    _edit.clear(), _seen.clear()
    for site in tower.attention:
        if how and site.layer in layers:
            _edit[id(network.get_submodule(site.path))] = (how, heads)
    with torch.no_grad():
        found = network(**inputs(name), use_cache=False).logits
    maps = {site.layer: _seen[id(network.get_submodule(site.path))][0] for site in tower.attention}
    _edit.clear()
    return found, maps


@pytest.mark.parametrize("name", NAMES)
def test_maps_and_statistics_are_those_of_the_model_itself(name):
    model, given, layers = handle(name), prompts(name), LAYERS[name]
    probes = [
        sk.AttentionMap(layers=layers, heads=range(4)), sk.KeyMass(), sk.Entropy(), sk.RoleShare(queries="all"),
        sk.ValueNorm(), sk.Logits(positions="all"),
    ]  # fmt: skip
    ds = sk.run(model, given, probes, batch_size=2, tower="cross")
    logits, maps = logits_of(name)
    assert (ds.attrs["tower"], ds.attrs["causal"]) == ("cross", 0)
    kinds = np.array(["attention"] * model.backend.towers["cross"].depth, dtype=object)
    kinds[layers] = "cross"
    assert ds.block_kind.values.tolist() == kinds.tolist()
    for variable in ("key_mass", "entropy", "role_share", "value_norm"):
        bare = [layer for layer in range(len(kinds)) if layer not in layers]
        assert np.isnan(ds[variable].sel(layer=bare)).all()
    for i, length in enumerate(lengths(name)):
        np.testing.assert_allclose(ds.logits.values[i, :length], logits[i, :length], atol=2e-5)
        for layer in layers:
            wanted = maps[layer][i, :, :length].numpy()
            at = ds.sel(layer=layer).isel(prompt=i)
            np.testing.assert_allclose(at.attention.values[:, :length], wanted, atol=2e-5)
            assert np.isnan(at.attention.values[:, length:]).all()
            sees = (wanted[0] > 0).sum(0)
            mass = np.where(sees > 0, wanted.sum(1) / np.maximum(sees, 1), np.nan)
            np.testing.assert_allclose(at.key_mass.values, mass, atol=2e-5)
            entropy = -(wanted * np.log(np.maximum(wanted, 1e-30))).sum(-1)
            np.testing.assert_allclose(np.nan_to_num(at.entropy.values[:, :length]), entropy, atol=2e-5)


def test_the_library_returns_the_same_maps():
    """Mllama's own ``output_attentions``, in float32, of one prompt."""
    model, given = handle("mllama"), prompts("mllama").subset([0])
    network = copy.deepcopy(model.model)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        out = network(**given.batch([0]).inputs, output_attentions=True, use_cache=False)
    ds = sk.run(model, given, [sk.AttentionMap(layers=[1, 3], heads=range(4))], tower="cross")
    for layer in (1, 3):
        np.testing.assert_allclose(ds.attention.sel(layer=layer)[0], out.attentions[layer][0], atol=2e-5)
    # The tower of the text is what it was: self-attention of blocks 0, 2 and 4.
    text = sk.run(model, given, [sk.AttentionMap(layers=[0, 2, 4], heads=range(4))])
    for layer in (0, 2, 4):
        np.testing.assert_allclose(text.attention.sel(layer=layer)[0], out.attentions[layer][0], atol=2e-5)


EDITS = {
    "mask": sk.MaskKeys("first"), "scale": sk.ScaleKeys(0.3, keys="first"), "drop": sk.DropKeys("first"),
    "zero": sk.ZeroValues("first"), "gate": sk.GateHeads(0.5, heads=range(4)),
}  # fmt: skip


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("name", NAMES)
def test_edits_equal_a_float64_reference(name, how):
    model, given = handle(name), prompts(name)
    plain = logits_of(name)[0]
    for layers, heads in ((None, None), ([LAYERS[name][1]], [1, 2])):
        edit = replace(EDITS[how], layers=layers, **({} if heads is None else {"heads": heads}))
        wanted = logits_of(name, how, LAYERS[name] if layers is None else layers, heads)[0]
        assert (wanted - plain).abs().max() > 1e-3
        ds = sk.run(model, given, [sk.Logits(positions="all")], [edit], tower="cross", batch_size=2)
        for i, length in enumerate(lengths(name)):
            np.testing.assert_allclose(ds.logits.values[i, :length], wanted[i, :length], atol=2e-5)


def test_rows_and_places_of_an_image_select():
    """Only the last token loses the right half of the image: the map says so, and only its logits change."""
    model, given = handle("mllama"), prompts("mllama").subset([0])
    plain = sk.run(model, given, [sk.KeyMass(), sk.Logits("all")], tower="cross")
    right = (plain.box_left >= 20).reset_coords(drop=True)
    assert 0 < int(right.sum()) < right.size / 2
    probes = [sk.AttentionMap([1, 3], [0]), sk.Logits("all")]
    ds = sk.run(model, given, probes, [sk.MaskKeys(right, queries="last")], tower="cross")
    last = given.lengths[0] - 1
    shares = ds.attention.sel(layer=[1, 3])[0].where(right[0]).sum("key")
    np.testing.assert_allclose(shares.sel(query=last), 0, atol=1e-7)
    assert float(shares.sel(query=last - 1).min()) > 0.01
    changed = np.abs(ds.logits - plain.logits)[0].max("vocab").values
    assert changed[last] > 1e-3
    np.testing.assert_allclose(changed[:last], 0, atol=2e-5)


def test_keys_are_patches_with_their_places_and_queries_the_text():
    """An image of 40 x 16 pixels becomes two tiles of three side by side and padding; two of the four are empty."""
    model = handle("mllama")
    ds = sk.run(model, prompts("mllama"), [sk.KeyMass(), sk.Entropy()], tower="cross", batch_size=2)
    assert ds.sizes["key"] == 4 * made.PER_TILE
    roles = ds.token_role.values[0].reshape(4, made.PER_TILE)
    tiles = (roles == "image").all(1)
    assert set(roles[~tiles].ravel()) <= {"special"}
    ratio = int(prompts("mllama").extras[0]["aspect_ratio_ids"][0, 0])
    high, wide = model.config.vision_config.supported_aspect_ratios[ratio - 1]
    assert (high, wide) == (1, 3)
    assert tiles.tolist() == [True, True, True, False]
    assert ds.token.values[0, :2].tolist() == ["[CLS]", "r0c0"]
    assert np.isnan(ds.grid_row.values[0, 0])
    assert ds.grid_tile.values[0, 1 + made.PER_TILE] == 2
    assert ds.grid_col.values[0, 1 + made.PER_TILE] == 4
    boxes = np.stack([ds[f"box_{side}"].values[0, 1] for side in ("left", "top", "right", "bottom")])
    np.testing.assert_allclose(boxes, [0, 0, 4, 4])
    assert float(np.nanmax(ds.box_right.values[0])) == 40
    assert ds.query_token.values[0, : lengths("mllama")[0]].tolist() == list(prompts("mllama").tokens[0])
    assert ds.sizes["query"] == max(lengths("mllama"))
    # One tile for the small image: its patches are one grid of the whole view.
    assert set(ds.grid_tile.values[1][np.isfinite(ds.grid_tile.values[1])]) == {0}


def test_an_image_that_is_not_there_and_latents_without_a_place():
    ds = sk.run(handle("idefics"), prompts("idefics"), [sk.KeyMass()], tower="cross")
    assert set(ds.token_role.values[1, made.PER_TILE :]) == {"special"}
    assert set(ds.token_role.values[1, : made.PER_TILE]) == {"image"}
    assert ds.grid_row.values[0, 1:5].tolist() == [0, 0, 0, 0]
    latents = sk.run(handle("latents"), prompts("latents"), [sk.KeyMass()], tower="cross")
    assert latents.token.values[0].tolist() == [f"latent {n}" for n in range(6)] * 2
    assert "grid_row" not in latents.coords


def test_a_sweep_gives_what_runs_give():
    model, given = handle("mllama"), prompts("mllama")
    variants = {"none": [], "mask": [sk.MaskKeys("first")], "gate": [sk.GateHeads(0.0, heads=[1], layers=[3])]}
    probes = [sk.KeyMass(), sk.TokenLoss()]
    swept = sk.sweep(model, given, variants, probes, tower="cross", batch_size=2)
    for label, edits in variants.items():
        alone = sk.run(model, given, probes, edits, tower="cross", batch_size=2)
        for name in ("key_mass", "token_loss"):
            np.testing.assert_allclose(swept[name].sel(edit=label), alone[name], atol=1e-5)


@pytest.mark.parametrize("tower", ["cross", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_generation_under_edits_goes_on_as_single_passes_do(name, tower):
    """From the cache, token by token: each is the largest logit of a pass over all before it under the same edit."""
    model, given = handle(name), prompts(name).subset([0]) if name == "mllama" else single(name)
    edits = [sk.ScaleKeys(0.1, keys="first"), sk.GateHeads(3.0, heads=[0, 1])]
    options = {"max_new_tokens": 5, "eos_token_id": None}
    longer = sk.generate(model, given, edits, tower=tower, **options)
    start = given.lengths[0]
    assert longer.lengths == (start + 5,)
    ds = sk.run(model, longer, [sk.Logits("all")], edits, tower=tower)
    written = longer.ids[0][start:]
    np.testing.assert_array_equal(ds.logits.values[0, start - 1 : -1].argmax(-1), written)
    with torch.no_grad():
        own = model.model.generate(
            **given.batch([0]).inputs | {"attention_mask": torch.ones(1, start, dtype=torch.long)}, do_sample=False,
            pad_token_id=2, **options,
        )  # fmt: skip
    plain = sk.generate(model, given, **options)
    np.testing.assert_array_equal(plain.ids[0][start:], own[0, start:])


def single(name):
    given = {key: tensor[:1] for key, tensor in made.idefics_inputs().items()}
    return sk.Prompts.from_inputs(given, handle(name))


def test_what_the_towers_do_not_have_is_refused_and_the_other_is_named():
    model, given = handle("mllama"), prompts("mllama")
    told = model.capabilities()
    assert told.towers.startswith("text, cross")
    assert "at blocks [1, 3], is another tower: tower='cross'" in told.note
    with pytest.raises(EditError, match=r"layers=1\): block 1 attends to the image alone, .*tower='cross'\. Blocks"):
        sk.run(model, given, [sk.KeyMass()], [sk.MaskKeys("first", layers=1)])
    with pytest.raises(EditError, match=r"block 0 has no attention to the image .*tower='text'\)\. Blocks with"):
        sk.run(model, given, [sk.KeyMass()], [sk.MaskKeys("first", layers=0)], tower="cross")
    with pytest.raises(ProbeError, match=r"block 1 attends to the image alone, which is another tower"):
        sk.run(model, given, [sk.AttentionMap([1], [0])])
    with pytest.raises(
        ProbeError, match=r"ResidualNorm\(\): cross-attention has no residual.*the text's with tower='text'"
    ):
        sk.run(model, given, [sk.ResidualNorm()], tower="cross")
    with pytest.raises(EditError, match="cross-attention has no residual stream of its own"):
        sk.run(model, given, [], [sk.SetActivations("0.post", dims=[1])], tower="cross")
    with pytest.raises(EditError, match=r"no key stands behind its query\. Use tower='text'"):
        sk.run(model, given, [], [sk.OpenKeys("image")], tower="cross")
    alone = sk.Prompts.from_ids([[0, 60, 61, 62]], model)
    with pytest.raises(PromptError, match=r"tower='cross': prompt 0 has no image.*read by tower='text'"):
        sk.run(model, alone, [sk.KeyMass()], tower="cross")
    assert sk.run(model, alone, [sk.KeyMass()]).attrs["tower"] == "text"


def test_mean_outputs_of_the_tower_replace_a_head():
    model, given = handle("mllama"), prompts("mllama")
    means = sk.edits.mean_outputs(model, given, tower="cross")
    assert means.shape[:2] == (5, 4)
    assert (np.abs(means).max((1, 2)) > 0).tolist() == [False, True, False, True, False]
