"""Attention variants: the row of the vectors, the pass against float64 maps, kernels, gates of rows, mixed rows."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.edits.rows import KERNELS, ROWS
from sinkscope.errors import EditError, EditHasNoEffect
from sinkscope.metrics import NORMALISERS
from sinkscope.models.backends.base import Instruments
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts

ROW = [2.0, 0.0, -1.0, 1.0]
WANTED = {
    "sigmoid_normalised": [0.369959, 0.210014, 0.112963, 0.307065],
    "elu_normalised": [0.471114, 0.157038, 0.057771, 0.314076],
    "softplus": [0.478327, 0.155883, 0.07045, 0.295341],
    "softpick": [0.731059, 0, 0, 0.196612],
    "clipped": [0.652549, 0.062373, 0.003982, 0.221096],
    "affine": [0.268174, 0.101143, 0.084618, 0.146065],
    "selective": [0.780948, 0.038112, 0.008419, 0.172521],
    "identity": [1.0, 0, -0.5, 0.5],
}


@pytest.mark.parametrize("kind", WANTED)
def test_the_row_of_the_sheet(kind):
    logits = torch.tensor([[[*ROW, 50.0]]])
    row, parameters = ROWS[kind]
    found = row(logits, torch.tensor([[[True] * 4 + [False]]]), *parameters)[0, 0]
    np.testing.assert_allclose(found[:4], WANTED[kind], atol=1e-6)
    assert float(found[4]) == 0
    np.testing.assert_allclose(NORMALISERS[kind](ROW), WANTED[kind], atol=1e-6)


def test_temperature():
    row, _ = ROWS["temperature"]
    found = row(torch.tensor([[ROW]]), torch.ones(1, 1, 4, dtype=torch.bool), 2.0)[0, 0]
    np.testing.assert_allclose(found, torch.softmax(torch.tensor(ROW) / 2, -1), atol=1e-6)
    np.testing.assert_allclose(found, NORMALISERS["temperature"](ROW), atol=1e-6)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_swap_equals_whole_maps(name, kind):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))

    def weights(row):
        p = row.softmax()
        for place in np.ndindex(*p.shape[:3]):
            seen = row.visible[place]
            if place[1] in (1, 2) and bool(seen.any()):
                p[place] = 0.0
                p[place][seen] = torch.as_tensor(NORMALISERS[kind](row.logits[place][seen].numpy()))
        return p

    edit = sk.SwapNormaliser(kind, layers=1, heads=[1, 2])
    reference = Reference(lambda row: weights(row) if row.layer == 1 else row.softmax())
    assert_close(edited_hidden(model, prompts, [edit]), dense_hidden(model, batch, reference), batch)


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_give_finite_rows_that_padding_and_decoding_leave_alone(kind):
    model, prompts = model_and_prompts("llama", lengths=(6, 9))
    edit = sk.SwapNormaliser(kind)
    together = sk.run(model, prompts, [sk.Logits()], [edit], batch_size=2).logits
    alone = [sk.run(model, prompts.subset([row]), [sk.Logits()], [edit]).logits for row in range(2)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)
    one = prompts.subset([1])
    written = sk.generate(model, one, [edit], max_new_tokens=2)
    again = sk.run(model, sk.Prompts.from_ids([written.ids[0][:-1].tolist()], model), [sk.Logits()], [edit]).logits
    assert int(again.values[0, 0].argmax()) == written.ids[0][-1]


def test_lucid_by_hand():
    """Keys that are alike share their weight: it is taken off the ones that repeat what came before."""
    model, _ = model_and_prompts("llama")
    alike = sk.Prompts.from_ids([[1, 7, 9, 12, 5]], model)
    plain, lucid = (
        sk.run(model, alike, [sk.AttentionMap([0], [0])], edits).attention[0, 0, 0].values
        for edits in ((), [sk.SwapNormaliser("lucid")])
    )
    assert np.allclose(np.triu(lucid, 1), 0)
    np.testing.assert_allclose(lucid[0, 0], plain[0, 0], atol=1e-4)
    assert np.abs(lucid - plain).max() > 1e-4


def test_a_row_mixed_with_the_identity():
    model, prompts = model_and_prompts("llama")
    probe = sk.AttentionMap([1], [0, 2])
    plain = sk.run(model, prompts, [probe]).attention
    mixed = sk.run(model, prompts, [probe], [sk.MixIdentity(0.5, heads=[2], layers=1)]).attention
    eye = np.eye(plain.sizes["query"])
    n = len(prompts.ids[0])
    wanted = 0.5 * plain.sel(head=2)[0, 0, :n, :n] + 0.5 * eye[:n, :n]
    np.testing.assert_allclose(mixed.sel(head=2)[0, 0, :n, :n], wanted, atol=1e-6)
    np.testing.assert_allclose(mixed.sel(head=0), plain.sel(head=0), atol=1e-6)
    row = np.array([0.4, 0.1, 0.4, 0.05, 0.05])
    np.testing.assert_allclose(0.5 * row + 0.5 * np.eye(5)[-1], [0.2, 0.05, 0.2, 0.025, 0.525])


def test_routed_heads_are_those_with_the_largest_query():
    model, prompts = model_and_prompts("llama")
    batch = prompts.batch(range(2))
    norms = {}

    def look(layer, call):
        norms[layer] = call.query.double().norm(dim=-1)

    model.backend.forward(batch.inputs, model.backend.towers["text"], Instruments(edits=look))

    def output(layer, out):
        if layer != 0:
            return out
        norm = norms[0].clone()
        norm[:, 0] = -1
        kept = torch.zeros_like(norm, dtype=torch.bool).scatter(1, norm.argmax(1, keepdim=True), True)
        kept[:, 0] = True
        return out * kept[..., None]

    edit = sk.RouteHeads(1, shared=[0], layers=0)
    assert_close(edited_hidden(model, prompts, [edit]), dense_hidden(model, batch, Reference(output=output)), batch)
    everything = sk.run(model, prompts, [sk.Logits()], [sk.RouteHeads(3, shared=[0])])
    np.testing.assert_array_equal(everything.logits, sk.run(model, prompts, [sk.Logits()]).logits)
    assert "acted on 0 rows" in everything.attrs["edit_notes"]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_amplified_logits_equal_whole_maps(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))

    def weights(row):
        changed = row.logits.clone()
        for prompt, real in enumerate(batch.real):
            last = int(real.sum()) - 1
            changed[prompt, :, last, 1:3] += 0.7 * row.logits[prompt, :, last, 1:3].abs()
        return row.softmax(changed)

    edit = sk.AmplifyLogits(0.7, keys=[1, 2], queries="last")
    assert_close(edited_hidden(model, prompts, [edit]), dense_hidden(model, batch, Reference(weights)), batch)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_amplified_logits_add_up_and_share_the_softmax_with_sinks_and_null_keys(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))

    def weights(row):
        changed = row.logits.clone()
        for key, alpha in ((1, 0.7), (2, 0.3), (1, 0.2)):
            changed[..., key] += alpha * torch.where(row.visible, changed, 0.0)[..., key].abs()
        return row.softmax(changed, null=0.5)

    edits = [sk.AmplifyLogits(0.7, keys=[1]), sk.AmplifyLogits(0.3, keys=[2]), sk.NullKey(0.5)]
    edits.append(sk.AmplifyLogits(0.2, keys=[1]))
    assert_close(edited_hidden(model, prompts, edits), dense_hidden(model, batch, Reference(weights)), batch)


@pytest.mark.parametrize(
    "without", [sk.NullKey(0.0), sk.KeyValueBias([0.5] * 8, value=[1.0] * 8), sk.SwapNormaliser("relu")]
)
def test_what_plays_no_part_under_another_normaliser_is_refused(without):
    model, prompts = model_and_prompts("llama")
    sigmoid = sk.SwapNormaliser("sigmoid")
    with pytest.raises(EditHasNoEffect, match="it plays no part in any of its heads: the last normaliser"):
        sk.run(model, prompts, [sk.KeyMass("first")], edits=[without, sigmoid])
    with pytest.raises(EditHasNoEffect, match="it plays no part in any of its heads"):
        sk.sweep(model, prompts, {"both": [without, sigmoid]}, [sk.KeyMass("first")])
    half = sk.SwapNormaliser("sigmoid", heads=[0], layers=[0])
    said = sk.run(model, prompts, [sk.KeyMass("first")], edits=[without, half]).attrs["edit_notes"]
    assert f"{without!r} plays no part in some of its heads" in said
    assert repr(half) not in said


def test_two_normalisers_in_different_heads_both_act():
    model, prompts = model_and_prompts("llama")
    edits = [sk.SwapNormaliser("relu", heads=[0]), sk.SwapNormaliser("sigmoid", heads=[1])]
    assert "no part" not in sk.run(model, prompts, [sk.KeyMass("first")], edits=edits).attrs["edit_notes"]


def test_errors():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"SwapNormaliser\(parameters=.*: 'clipped' takes 2 numbers, such as \[1.03"):
        sk.SwapNormaliser("clipped", parameters=[1.0])
    with pytest.raises(EditError, match="'relu' takes 0 numbers"):
        sk.SwapNormaliser("relu", parameters=[1.0])
    with pytest.raises(EditError, match=r"MixIdentity\(s=2.0?\): s must be a finite number from 0 to 1"):
        sk.MixIdentity(2.0)
    with pytest.raises(EditError, match="top must be a whole number of heads"):
        sk.RouteHeads(-1)
    with pytest.raises(EditHasNoEffect, match="none of the"):
        sk.run(model, prompts, edits=[sk.AmplifyLogits(0.5, keys="image")])
