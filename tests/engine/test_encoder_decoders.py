"""Three towers of encoder-decoders against the library's own eager maps, and edits of each against float64."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import EditError, ProbeError, PromptError, UnsupportedModelError

NAMES = testing.names("encoder-decoder")
MAPS = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}
SOURCES = [[5, 7, 9, 11, 13, 15, 17], [6, 8, 10, 12], [20, 21, 22, 23, 24, 25, 26, 27, 28]]
TARGETS = [[2, 30, 31, 32, 33], [2, 40, 41, 42, 43, 44, 45, 46], [2, 50, 51]]


@cache
def handle(name):
    return sk.load_model(testing.tiny(name))


@cache
def rows(name):
    """Inputs of each pair alone, for the library."""
    model = handle(name).model
    recorded = testing.inputs(model, batch=3)
    main = model.main_input_name
    sources = [torch.tensor([r]) for r in SOURCES] if main == "input_ids" else recorded[main].split(1)
    pairs = zip(sources, TARGETS, strict=True)
    return [{main: source, "decoder_input_ids": torch.tensor([target])} for source, target in pairs]


def padded(rows, value=0):
    longest = max(map(len, rows))
    ids = torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


@cache
def prompts(name):
    model = handle(name)
    if model.model.main_input_name == "input_ids":
        return sk.Prompts.from_pairs(list(zip(SOURCES, TARGETS, strict=True)), model)
    ids, mask = padded(TARGETS)
    recorded = testing.inputs(model.model, batch=3)[model.model.main_input_name]
    given = {model.model.main_input_name: recorded, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    return sk.Prompts.from_inputs(given, model)


@cache
def eager(name):
    network = copy.deepcopy(handle(name).model)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        return [network(**row, output_attentions=True, use_cache=False) for row in rows(name)]


@pytest.mark.parametrize("tower", MAPS)
@pytest.mark.parametrize("name", NAMES)
def test_every_tower_reads_what_eager_attention_gives(name, tower):
    model = handle(name)
    depth = model.backend.towers[tower].depth
    probes = [
        sk.AttentionMap(layers=range(depth), heads=range(4)), sk.KeyMass(), sk.Entropy(), sk.RoleShare(queries="all"),
    ]  # fmt: skip
    ds = sk.run(model, prompts(name), probes, batch_size=3, tower=tower)
    assert (ds.attrs["tower"], ds.attrs["causal"]) == (tower, int(tower == "decoder"))
    assert ds.sizes["layer"] == depth
    for i, own in enumerate(eager(name)):
        for layer in range(depth):
            wanted = own[MAPS[tower]][layer][0].numpy()
            _, q, k = wanted.shape
            found = ds.attention.values[i, layer]
            np.testing.assert_allclose(found[:, :q, :k], wanted, atol=1e-5)
            assert np.isnan(found[:, q:]).all()
            assert np.isnan(found[:, :, k:]).all()
            viewers = np.arange(q, 0, -1) if tower == "decoder" else q
            np.testing.assert_allclose(ds.key_mass.values[i, layer][:, :k], wanted.sum(1) / viewers, atol=1e-5)
            entropy = -(wanted * np.log(np.maximum(wanted, 1e-30))).sum(-1)
            np.testing.assert_allclose(ds.entropy.values[i, layer][:, :q], entropy, atol=1e-5)
    shares = ds.role_share.sum("role")
    np.testing.assert_allclose(shares, 1, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_decoders_whatever_tower_is_read(name):
    model = handle(name)
    for tower, more in (("encoder", sk.KeyMass()), ("decoder", sk.Entropy()), ("cross", sk.Entropy())):
        ds = sk.run(model, prompts(name), [sk.TokenLoss(), sk.Logits(positions="all"), more], tower=tower, batch_size=3)
        for i, own in enumerate(eager(name)):
            logits = own.logits[0]
            target = torch.tensor(TARGETS[i])
            wanted = torch.nn.functional.cross_entropy(logits[:-1], target[1:], reduction="none")
            found = ds.token_loss.values[i]
            assert np.isfinite(found).sum() == len(target) - 1
            np.testing.assert_allclose(found[: len(wanted)], wanted.numpy(), atol=1e-4)
            np.testing.assert_allclose(ds.logits.values[i, : len(target)], logits.numpy(), atol=1e-4)


def test_coordinates_of_cross_attention_are_the_sources_keys_and_the_targets_queries():
    ds = sk.run(handle("bart"), prompts("bart"), [sk.Entropy(), sk.KeyMass()], tower="cross")
    assert (ds.sizes["key"], ds.sizes["query"]) == (9, 8)
    assert ds.token.values[1].tolist() == ["#6", "#8", "#10", "#12", *[""] * 5]
    assert ds.query_token.values[2].tolist() == ["#2", "#50", "#51", *[""] * 5]
    assert ds.query_role.values[2].tolist() == ["bos", "text", "text", *["pad"] * 5]
    decoder = sk.run(handle("bart"), prompts("bart"), [sk.Entropy(), sk.KeyMass()])
    assert (decoder.attrs["tower"], decoder.sizes["key"]) == ("decoder", 8)
    assert decoder.token.values[2].tolist() == ["#2", "#50", "#51", *[""] * 5]
    assert "query_token" not in decoder.coords


def test_frames_of_a_recording_have_the_role_audio():
    for name, count in (("whisper", 10), ("moonshine", 6)):
        ds = sk.run(handle(name), prompts(name), [sk.RoleShare(queries="all")], tower="cross")
        assert set(ds.token_role.values.ravel()) == {"audio"}
        assert ds.token.values[0].tolist() == [f"frame {n}" for n in range(count)]
        np.testing.assert_allclose(ds.role_share.sel(role="audio"), 1, atol=1e-5)
    assert "audio" not in sk.run(handle("bart"), prompts("bart"), [sk.RoleShare()], tower="cross").role.values


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_the_residual_stream_of_both_stacks(name):
    model = handle(name)
    network = copy.deepcopy(model.model)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        own = network(**rows(name)[0], output_hidden_states=True, use_cache=False)
    for tower, states in (("encoder", own.encoder_hidden_states), ("decoder", own.decoder_hidden_states)):
        ds = sk.run(model, prompts(name).subset([0]), [sk.ResidualNorm()], tower=tower)
        depth = model.backend.towers[tower].depth
        names = ["embed", *(f"{layer}.{part}" for layer in range(depth) for part in ("mid", "post"))]
        assert ds.site.values.tolist() == names
        # The last state of the library is behind the final norm.
        for layer in range(depth - 1):
            norm = states[layer + 1][0].norm(dim=-1).numpy()
            np.testing.assert_allclose(ds.residual_norm.sel(site=f"{layer}.post").values[0], norm, rtol=1e-4)


# ---------------------------------------------------------------- edits against float64

REFERENCE = "pairs_reference"
_edit = {}


def reference(module, query, key, value, attention_mask=None, scaling=None, position_bias=None, **_):
    """Softmax attention in the type of the inputs; ``_edit`` says by module what is changed."""
    own = _edit.get(id(module))
    logits = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        logits = logits + position_bias
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[2]]
    if own == "mask":
        hidden = logits.clone()
        hidden[..., 0] = torch.finfo(logits.dtype).min
        lone = (logits[..., 1:] < -1e30).all(-1, keepdim=True)  # a row that sees the first key alone is left as it is
        logits = torch.where(lone, logits, hidden)
    if own == "scale":
        logits = torch.cat([logits[..., :1] + math.log(0.3), logits[..., 1:]], -1)
    weights = logits.softmax(-1)
    if own == "drop":
        weights = torch.cat([torch.zeros_like(weights[..., :1]), weights[..., 1:]], -1)
    if own == "zero":
        value = torch.cat([torch.zeros_like(value[:, :, :1]), value[:, :, 1:]], 2)
    out = weights @ value
    if own == "gate":
        out = torch.cat([out[:, :1] * 0.5, out[:, 1:]], 1)
    return out.transpose(1, 2).contiguous(), weights


AttentionInterface.register(REFERENCE, reference)
AttentionMaskInterface.register(REFERENCE, eager_mask)
EDITS = {
    "mask": sk.MaskKeys("first"), "scale": sk.ScaleKeys(0.3, keys="first"), "drop": sk.DropKeys("first"),
    "zero": sk.ZeroValues("first"), "gate": sk.GateHeads(0.5, heads=[0]),
}  # fmt: skip


@pytest.mark.parametrize("tower", MAPS)
@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_edits_of_every_tower_equal_a_float64_reference(name, tower):
    model = handle(name)
    network = copy.deepcopy(model.model).double()
    network.set_attn_implementation(REFERENCE)
    sites = model.backend.towers[tower].attention
    try:
        for key, edit in EDITS.items():
            layers = [1] if key in ("scale", "drop") else None
            _edit.clear()
            chosen = [s for s in sites if layers is None or s.layer in layers]
            _edit.update({id(network.get_submodule(s.path)): key for s in chosen})
            changed = replace(edit, layers=layers)
            ds = sk.run(model, prompts(name), [sk.Logits(positions="all")], [changed], tower=tower, batch_size=3)
            for i, row in enumerate(rows(name)):
                given = {n: t.double() if t.is_floating_point() else t for n, t in row.items()}
                with torch.no_grad():
                    wanted = network(**given, use_cache=False).logits[0].numpy()
                found = ds.logits.values[i, : len(wanted)]
                np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=f"{key} {layers}")
    finally:
        _edit.clear()


@pytest.mark.parametrize(("name", "tower", "site"), [
    ("t5", "encoder", "0.mid"), ("t5", "decoder", "1.mid"), ("whisper", "encoder", "1.mid"),
    ("bart", "decoder", "0.post"), ("bart", "encoder", "embed"), ("whisper", "decoder", "embed"),
])  # fmt: skip
def test_changes_of_the_stream_equal_a_hook_on_the_model(name, tower, site):
    model = handle(name)
    changed = sk.SetActivations(site, dims=[3], value=2.5, keys="first")
    ds = sk.run(model, prompts(name), [sk.Logits(positions="all")], [changed], tower=tower, batch_size=3)
    network = copy.deepcopy(model.model).double()
    network.set_attn_implementation(REFERENCE)
    with hooked(network, tower, site):
        for i, row in enumerate(rows(name)):
            given = {n: t.double() if t.is_floating_point() else t for n, t in row.items()}
            with torch.no_grad():
                wanted = network(**given, use_cache=False).logits[0].numpy()
            found = ds.logits.values[i, : len(wanted)]
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@contextmanager
def hooked(network, tower, site):
    """Write 2.5 into dimension 3 of the first token, by the library's own modules."""
    stack = network.get_encoder() if tower == "encoder" else network.get_decoder()
    blocks = stack.block if hasattr(stack, "block") else stack.layers

    def changed(hidden):
        hidden = hidden.clone()
        hidden[:, 0, 3] = 2.5
        return hidden

    def before(_, args, kwargs):
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": changed(kwargs["hidden_states"])}

    def after(_, __, out):
        return (changed(out[0]), *out[1:]) if isinstance(out, tuple) else changed(out)

    if site == "embed":
        handle = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    elif site.endswith(".post"):
        handle = blocks[int(site[0])].register_forward_hook(after)
    elif hasattr(stack, "block"):  # T5: the first of a block's parts hands the stream on
        handle = blocks[int(site[0])].layer[0].register_forward_hook(after)
    else:  # Whisper's encoder: the sum of the stream and what attention wrote, before norm and MLP
        block = blocks[int(site[0])]
        kept = {}
        block.register_forward_pre_hook(lambda _, args, kw: kept.update(x=(args or kw.values())[0]), with_kwargs=True)

        def written(_, __, out):
            summed = changed(kept["x"] + out[0])
            return (summed - kept["x"], *out[1:])

        handle = block.self_attn.register_forward_hook(written)
    try:
        yield
    finally:
        handle.remove()


# ---------------------------------------------------------------- sweeps, the encoder alone, refusals


def test_a_sweep_gives_what_runs_give():
    model, given = handle("bart"), prompts("bart")
    variants = {"none": [], "mask": [sk.MaskKeys("first")], "gate": [sk.GateHeads(0.0, heads=[1], layers=[1])]}
    for tower in MAPS:
        probes = [sk.KeyMass(), sk.TokenLoss()]
        swept = sk.sweep(model, given, variants, probes, tower=tower, batch_size=3)
        for label, edits in variants.items():
            alone = sk.run(model, given, probes, edits, tower=tower, batch_size=3)
            for name in ("key_mass", "token_loss"):
                np.testing.assert_allclose(swept[name].sel(edit=label), alone[name], atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_the_encoder_alone_is_a_model_and_reads_the_same(name):
    model = handle(name)
    alone = sk.load_model(model.model.get_encoder())
    if name == "whisper":
        assert alone.kind == "audio"
        own = sk.Prompts.from_inputs({"input_features": rows(name)[0]["input_features"]}, alone)
    else:
        assert alone.kind == "encoder"
        own = sk.Prompts.from_ids(SOURCES[:1], alone)
    probes = [sk.KeyMass(), sk.ResidualNorm()]
    found = sk.run(alone, own, probes)
    wanted = sk.run(model, prompts(name).subset([0]), probes, tower="encoder")
    np.testing.assert_allclose(found.key_mass, wanted.key_mass, atol=1e-6)
    np.testing.assert_allclose(found.residual_norm, wanted.residual_norm, rtol=1e-5)
    assert found.site.values.tolist() == wanted.site.values.tolist()


def test_what_a_tower_does_not_have_is_refused():
    model, given = handle("bart"), prompts("bart")
    with pytest.raises(ProbeError, match=r"ResidualNorm\(\): cross-attention has no residual stream of its own"):
        sk.run(model, given, [sk.ResidualNorm()], tower="cross")
    with pytest.raises(EditError, match=r"SetActivations\(site='0.post'\).*cross-attention has no residual stream"):
        sk.run(model, given, [], [sk.SetActivations("0.post", dims=[1])], tower="cross")
    with pytest.raises(
        EditError, match=r"MaskKeys\(keep_self=True\): in cross-attention no query has a key of its own"
    ):
        sk.run(model, given, [], [sk.MaskKeys("first", keep_self=True)], tower="cross")
    with pytest.raises(
        EditError, match=r"behind self-attention this decoder reads the stream in two branches.*'0\.post'"
    ):
        sk.run(model, given, [], [sk.SetActivations("0.mid", dims=[1])], tower="decoder")
    with pytest.raises(
        ProbeError, match="TokenLoss and Entropy: on tower='encoder' the queries of the one are tokens of"
    ):
        sk.run(model, given, [sk.TokenLoss(), sk.Entropy()], tower="encoder")
    with pytest.raises(
        UnsupportedModelError, match=r"tower='vision': this model has \['decoder', 'encoder', 'cross'\]"
    ):
        sk.run(model, given, [], tower="vision")
    source = sk.Prompts.from_ids(SOURCES, model)
    assert sk.run(model, source, [sk.KeyMass()], tower="encoder").sizes["key"] == 9
    with pytest.raises(PromptError, match="tower='decoder': these prompts have a source alone"):
        sk.run(model, source, [sk.KeyMass()])
    with pytest.raises(PromptError, match="run: these prompts are pairs, and this model is a decoder"):
        sk.run(sk.load_model(testing.tiny("llama")), given, [sk.KeyMass()])
    with pytest.raises(
        PromptError, match="the source of these prompts is input_ids, and this model reads input_features"
    ):
        sk.run(handle("whisper"), given, [sk.KeyMass()])


def test_capabilities_name_the_towers_and_verify_all_of_them():
    found = handle("t5").capabilities(verify=True)
    assert (found.kind, found.towers, found.layers) == ("encoder-decoder", "decoder, encoder, cross", 3)
    assert found.verified.startswith("decoder against eager on ")
    assert found.verified.count("maps") == 3
