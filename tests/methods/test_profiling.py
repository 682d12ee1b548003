"""The first-order estimate is the derivative, and ranks heads as the exact sweep does."""

import numpy as np
import pytest

import sinkscope as sk
from methods.results import check_result
from sinkscope import testing
from sinkscope.methods import HeadProfileSettings, profile_heads


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def prompts(model):
    return sk.Prompts.from_ids([row.tolist() for row in testing.text_ids(model.model, batch=3, length=10)], model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_derivative_equals_a_central_difference(name):
    model = sk.load_model(testing.tiny(name))
    prompts = sk.Prompts.from_ids([row.tolist() for row in testing.text_ids(model.model, batch=2, length=8)], model)
    found = profile_heads(model, prompts).found
    assert found["first_order"].dims == ("prompt", "layer", "head")
    step = 0.02
    for layer, head in [(0, 1), (1, 3)]:
        at = {"layers": [layer], "heads": [head]}
        up, down = (
            sk.run(model, prompts, [sk.TokenLoss()], [sk.ScaleKeys(float(np.exp(s)), **at)])["token_loss"].mean("query")
            for s in (step, -step)
        )
        slope = (up - down).values / (2 * step)
        np.testing.assert_allclose(found["first_order"].sel(layer=layer, head=head), slope, atol=5e-4)


def test_exact_effects_are_those_of_run_and_ranks_agree(model, prompts):
    result = profile_heads(model, prompts, HeadProfileSettings(exact=0.8))
    found = result.found
    plain = sk.run(model, prompts, [sk.TokenLoss()])["token_loss"].mean("query")
    np.testing.assert_allclose(found["metric"], plain, atol=1e-5)
    edit = sk.ScaleKeys(0.8, layers=[2], heads=[0])
    one = sk.run(model, prompts, [sk.TokenLoss()], [edit])["token_loss"].mean("query") - plain
    np.testing.assert_allclose(found["effect"].sel(layer=2, head=0), one, atol=1e-5)
    np.testing.assert_allclose(found["predicted"], found["first_order"] * np.log(0.8), rtol=1e-6)
    assert int(found["rank_n"]) == 12
    assert float(found["rank_correlation"]) > 0.9
    assert float(found["rank_low"]) <= float(found["rank_correlation"]) + 1e-9
    assert float(found["rank_high"]) <= 1.0
    frame = check_result(result)
    assert len(frame) == 12
    assert frame["first_order"].abs().is_monotonic_decreasing


def test_masking_is_ranked_by_the_derivative_and_one_prompt_has_no_interval(model, prompts):
    found = profile_heads(model, prompts.subset([0]), HeadProfileSettings(exact=0.0)).found
    assert -1.0 <= float(found["rank_correlation"]) <= 1.0
    assert np.isnan(float(found["rank_low"]))
    assert np.isnan(float(found["rank_high"]))


def last_norm(output, batch):
    return output.hidden[:, -1].norm(dim=-1)


def test_metric_of_ones_own_on_an_encoder():
    model = sk.load_model(testing.tiny("bert_base"))
    prompts = sk.Prompts.from_ids([row.tolist() for row in testing.text_ids(model.model, batch=2, length=8)], model)
    found = profile_heads(model, prompts, HeadProfileSettings(metric=last_norm, exact=0.9)).found
    assert found.attrs["metric"] == "last_norm"
    assert float(found["rank_correlation"]) > 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "accuracy"}, sk.ProbeError, "use 'token_loss' or a function of a pass and its batch"),
        ({"exact": 1.0}, sk.EditError, r"profile_heads\(exact=1.0\): gamma 1 changes nothing"),
        ({"keys": "image"}, sk.EditError, r"profile_heads\(keys='image'\): prompt 0 has no such key"),
        ({"metric": lambda output, batch: output.hidden}, sk.ProbeError, "the metric gave a tensor of shape"),
    ],
)
def test_what_is_refused(model, prompts, options, error, message):
    with pytest.raises(error, match=message):
        profile_heads(model, prompts, HeadProfileSettings(**options))


def test_model_is_left_as_it_was(model, prompts):
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    profile_heads(model, prompts, HeadProfileSettings(exact=0.5))
    for name, parameter in model.model.named_parameters():
        assert parameter.grad is None
        np.testing.assert_array_equal(parameter.detach(), before[name])
