"""Values put in the place of others: each way against whole maps in float64, and what a drawn value depends on."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.errors import EditError, EditHasNoEffect
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts

HEADS = [0, 3]


def check(name, edit, change):
    """Compare with a reference in which ``change`` gets one head's values (key, dim) of one prompt."""
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(len(prompts)))

    def values(layer, value):
        value = value.clone()
        for row in range(len(value)):
            real = batch.real[row]
            for head in HEADS:
                value[row, head, real] = change(value[row, head, real])
        return value

    expected = dense_hidden(model, batch, Reference(values=values))
    assert_close(edited_hidden(model, prompts, [edit]), expected, batch)
    assert float((dense_hidden(model, batch, Reference()) - expected)[batch.real].abs().max()) > 1e-3


def put(at, new):
    return lambda value: torch.cat([value[:at], new(value)[None], value[at + 1 :]])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_the_mean_over_the_prompt(name):
    check(name, sk.ReplaceValues([1], how="mean", heads=HEADS), put(1, lambda value: value.mean(0)))


@pytest.mark.parametrize("donor", [3, -1])
def test_a_donor(donor):
    check("llama", sk.ReplaceValues("first", how="donor", donor=donor, heads=HEADS), put(0, lambda v: v[donor]))


def test_shuffled_keys_exchange_their_values():
    check(
        "llama", sk.ReplaceValues([1, 4], how="shuffle", heads=HEADS), lambda v: v[[0, 4, 2, 3, 1, *range(5, len(v))]]
    )


@pytest.mark.parametrize("how", ["mean", "donor", "noise", "shuffle"])
def test_what_stands_beside_a_prompt_changes_nothing(how):
    model, prompts = model_and_prompts("llama", lengths=(6, 9))
    edit = sk.ReplaceValues([0, 2], how=how)
    together = sk.run(model, prompts, [sk.Logits()], [edit], batch_size=2).logits
    alone = [sk.run(model, prompts.subset([row]), [sk.Logits()], [edit]).logits for row in range(2)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    written = sk.generate(model, prompts, [edit], max_new_tokens=3)
    for row in range(2):
        np.testing.assert_array_equal(written.ids[row], sk.generate(model, prompts.subset([row]), [edit], 3).ids[0])


def test_noise_has_the_size_of_the_values_and_follows_its_seed():
    model, prompts = model_and_prompts("llama")
    norm = [
        sk.run(model, prompts, [sk.Logits(), sk.Contribution()], [sk.ReplaceValues("all", how="noise", seed=seed)])
        for seed in (0, 0, 1)
    ]
    plain = sk.run(model, prompts, [sk.Contribution()]).contribution
    np.testing.assert_array_equal(norm[0].logits, norm[1].logits)
    assert float(np.abs(norm[0].logits - norm[2].logits).max()) > 1e-3
    assert 0.5 < float(norm[0].contribution.isel(layer=0).sum() / plain.isel(layer=0).sum()) < 2


def test_what_is_written_is_that_of_the_new_value():
    model, prompts = model_and_prompts("llama")
    edits = [sk.ReplaceValues([1], how="donor", donor=2), sk.ReplaceValues([2], how="donor", donor=1)]
    one = sk.run(model, prompts, [sk.Contribution()], [sk.ZeroValues("all")])
    assert float(one.contribution.sum()) == 0
    twice = sk.run(model, prompts, [sk.Contribution()], [sk.ZeroValues("all"), edits[0]])
    assert float(twice.contribution.sum()) > 0


def test_a_token_that_carries_nothing_is_replaced_without_effect_only_where_zeroing_has_none():
    """A planted sink has a drained value: its mean-replacement moves the output more than zeroing does."""
    model, truth = sk.testing.planted_sink(0)
    prompts = sk.Prompts.from_ids([[model.config.bos_token_id, 5, 9, 12, 7, 30, 21]], model)
    layer, head = truth.heads[0]
    plain = sk.run(model, prompts, [sk.Logits(positions="all")]).logits
    change = {
        name: float(np.abs(sk.run(model, prompts, [sk.Logits(positions="all")], [edit]).logits - plain).max())
        for name, edit in {
            "zero": sk.ZeroValues("first", layers=layer, heads=head),
            "mean": sk.ReplaceValues("first", layers=layer, heads=head),
        }.items()
    }
    assert change["mean"] > change["zero"]


def test_errors():
    with pytest.raises(EditError, match=r"ReplaceValues\(how='swap'\): how must be one of"):
        sk.ReplaceValues("first", how="swap")
    with pytest.raises(EditError, match=r"a donor belongs to how='donor'"):
        sk.ReplaceValues("first", donor=2)
    with pytest.raises(EditError, match=r"ReplaceValues\(seed=1.5\): a whole number is needed"):
        sk.ReplaceValues("first", how="noise", seed=1.5)
    with pytest.raises(EditError, match="seed must be 0 or above"):
        sk.ReplaceValues("first", how="noise", seed=-1)
    with pytest.raises(EditError, match="a value vector is the same for every query"):
        sk.ReplaceValues("first", queries="last")
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"ReplaceValues\(donor=40\): a prompt has 9 tokens"):
        sk.run(model, prompts, edits=[sk.ReplaceValues("first", how="donor", donor=40)])
    with pytest.raises(EditError, match="every token of a prompt is selected, none can be the donor"):
        sk.run(model, prompts, edits=[sk.ReplaceValues("all", how="donor")])
    with pytest.raises(EditHasNoEffect, match="changes nothing"):
        sk.run(model, prompts, edits=[sk.ReplaceValues("first", how="shuffle")])
