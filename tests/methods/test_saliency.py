"""What a word rests on, by hand and by the formula; and a rejection that rejects, unlike the released one."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.generation import extended
from sinkscope.errors import PromptError
from sinkscope.methods.saliency import SgrsSettings, accept, rate_by_bin, sgrs, word_map, word_saliency


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7]], model)
    return model, prompts, extended(prompts, [np.array([10, 11])], model)


def test_it_is_that_of_autograd_through_eager_maps(case):
    model, _, written = case
    found = word_saliency(model, written, [1])
    network, ids = testing.tiny("llama"), written.ids[0]
    network.set_attn_implementation("eager")
    for place in (4, 5):
        out = network(input_ids=torch.tensor(ids)[None], output_attentions=True, use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits[:, place - 1], torch.tensor([ids[place]]))
        maps = out.attentions[1]
        row = (maps * torch.autograd.grad(loss, maps)[0])[0, :, place - 1].abs().mean(0)
        row = (row / row.norm()).detach().numpy()
        assert float(found[0, place]) == pytest.approx(row[1:place].mean(), abs=1e-4)
    assert np.isnan(found[0, :4]).all()
    # The released row, that of the token itself, has no gradient.
    maps = sk.run(model, written.subset([0]), [sk.AttentionGradient([1], range(4), lambda s, _: s[-2, 11])])
    assert not np.nan_to_num(maps.attention_gradient[0, 0, :, -1]).any()


def test_the_map_of_words_holds_what_each_word_rests_on(case):
    model, prompts, written = case
    rests, each = word_map(model, written), word_saliency(model, written)
    assert rests["query"].values.tolist() == [4, 5]
    assert rests["token"].values.tolist() == list(written.tokens[0])
    for row, place in enumerate((4, 5)):
        assert float(rests[row, 1:place].mean()) == pytest.approx(float(each[0, place]), abs=1e-5)
        assert not rests[row, place:].any()  # a word does not see itself or what comes after
    with pytest.raises(PromptError, match=r"word_map\(roles=\['generated'\]\)"):
        word_map(model, prompts)


def test_a_draw_that_rests_on_too_little_is_refused():
    saliency = {3: 0.1, 8: 0.2, 5: 0.9, 2: 0.5}
    assert accept([3, 8, 2, 5], saliency.__getitem__, 0.0, 3) == (3, 1)
    assert accept([3, 8, 2, 5], saliency.__getitem__, 0.4, 3) == (2, 3)
    assert accept([3, 8, 2, 5], saliency.__getitem__, 0.6, 3) == (5, 0)


def test_with_alpha_zero_it_samples_and_with_a_high_one_it_takes_the_most_salient(case):
    model, prompts, _ = case
    plain = sgrs(model, prompts, SgrsSettings(alpha=0.0, max_new_tokens=3, top=3))
    strict = sgrs(model, prompts, SgrsSettings(alpha=50.0, max_new_tokens=3, top=3), edits=[sk.BoostRecent()])
    assert plain.table()["accepted"].all()
    assert (plain.table()["draws"] == 1).all()
    assert strict.table()["accepted"].tolist() == [True, False, False]
    assert [len(found.prompts.ids[0]) for found in (plain, strict)] == [7, 7]
    assert plain.table()["threshold"][0] == 0
    assert "zhang2026" in plain.cite()
    assert plain.plot().get_ylabel() == "saliency"
    # The saliency that decided is the one read off afterwards.
    again = word_saliency(model, plain.prompts)
    np.testing.assert_allclose(again[0, 4:], plain.table()["saliency"], atol=1e-5)


def test_wrong_words_by_bin():
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = rate_by_bin(values, [True, True, True, False, False, False], bins=2)
    assert found["rate"].tolist() == [1, 0]
    assert found["n"].tolist() == [3, 3]
    assert (found["rate_low"] < 1).all()
    assert rate_by_bin([0.5] * 4, [True] * 2 + [False] * 2, bins=2)["n"].tolist() == [4]


def test_errors(case):
    model, prompts, _ = case
    with pytest.raises(PromptError, match=r"no token of these prompts has such a role\. Generate"):
        word_saliency(model, prompts)
    with pytest.raises(PromptError, match="must be at least 1"):
        sgrs(model, prompts, SgrsSettings(top=0))
    with pytest.raises(PromptError, match=r"rate_by_bin: 1 values, 1 verdicts, 5 bins"):
        rate_by_bin([0.1], [True])
