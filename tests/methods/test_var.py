from functools import cache

import numpy as np
import pytest

import sinkscope as sk
from methods.results import check_result
from sinkscope import metrics, testing
from sinkscope.errors import EditError, MetricError, PromptError
from sinkscope.methods.var import VarSettings, choose_tau, image_heads, redistribution, sink_dims, tau_of, var
from sinkscope.tasks.examples import Examples, answer_score


@cache
def planted():
    return testing.planted_visual_sink(0, "llava")


def examples(rows, answer=7):
    prompts = planted()[1]
    return Examples(prompts.subset(rows), (answer,) * len(rows))


def test_phi_of_the_published_vector():
    states = np.tile([1.0, -1.0], (8, 2048))
    states[0, 1415], states[3, 2533], states[5, 1415], states[4, 777] = 60, -45, 15, 500
    wanted = [43.7751, 1, 1, 36.8143, 0.1270, 14.6059, 1, 1]
    found = metrics.phi(states, [2533, 1415])
    np.testing.assert_allclose(found, wanted, atol=5e-4)
    assert np.flatnonzero(found >= 20).tolist() == [0, 3]


def test_the_procedure_finds_the_dimension_and_scores_the_test_once():
    model, _, truth = planted()
    settings = VarSettings((0.3, 0.99), start_layer=1)
    result = var(model, examples([0, 1]), examples([2, 3]), settings)
    assert result.dims == tuple(truth.dims)
    assert result.calibration["setting"].values.tolist() == ["none", "rho=0.3", "rho=0.99"]
    means = result.calibration["log_probability"].mean("prompt").values[1:]
    assert result.edit == redistribution(model, (0.3, 0.99)[int(means.argmax())], truth.dims, settings)
    assert check_result(result).index.tolist() == ["log_probability", "correct"]
    alone = answer_score(model, examples([2, 3]), [result.edit])
    np.testing.assert_array_equal(result.scores["log_probability"].sel(setting="var"), alone["log_probability"])
    gain = result.scores["log_probability"].diff("setting").mean()
    assert float(result.test["log_probability"]["difference"]) == pytest.approx(float(gain))
    assert "acted on" in result.notes


def test_the_last_prompt_has_no_visual_sink_and_keeps_its_score():
    model, _, truth = planted()
    edit = redistribution(model, 0.5, truth.dims, VarSettings(start_layer=1))
    plain, edited = answer_score(model, examples([0, 3])), answer_score(model, examples([0, 3]), [edit])
    assert float(edited["log_probability"][1]) == float(plain["log_probability"][1])
    assert float(edited["log_probability"][0]) != float(plain["log_probability"][0])


@pytest.mark.parametrize("rule", ["non_sink", "sink"])
def test_selected_rows_are_those_the_edit_acts_on(rule):
    model, prompts, truth = planted()
    settings = VarSettings(rule=rule, start_layer=1, skip_last=True)
    selected = image_heads(model, prompts.subset([0, 1, 2]), 0.5, truth.dims, settings)["selected"]
    assert selected["layer"].values.tolist() == [1, 2]
    for layer, head in truth.heads:
        if layer < 3:
            assert not selected.sel(layer=layer, head=head).any()
    first = selected.sel(layer=1).sum()
    edit = redistribution(model, 0.5, truth.dims, settings)
    alone = sk.Redistribute(
        edit.p, rho=edit.rho, tau=edit.tau, dims=edit.dims, rule=rule, start_layer=1, layers=[1], skip_last=True
    )
    reading = sk.run(model, prompts.subset([0, 1, 2]), [sk.Logits()], [alone])
    assert f"acted on {int(first)} rows" in reading.attrs["edit_notes"]


def test_both_rules_by_name_agree_at_one_half():
    model, prompts, truth = planted()
    rows = [
        image_heads(model, prompts.subset([0]), 0.5, truth.dims, VarSettings(rule=rule, start_layer=1))["selected"]
        for rule in ("non_sink", "sink")
    ]
    np.testing.assert_array_equal(*rows)
    moved = [
        sk.run(model, prompts.subset([0]), [sk.Logits()],
               [redistribution(model, 0.5, truth.dims, VarSettings(p=p, rule=rule, start_layer=1))])["logits"].values
        for rule, p in (("non_sink", 0.6), ("sink", 0.4))
    ]  # fmt: skip
    np.testing.assert_allclose(*moved, atol=1e-5)


def test_a_tau_among_ordinary_tokens_is_moved_into_the_gap_or_refused():
    model, prompts, truth = testing.planted_visual_sink(0)
    reading = sk.run(model, prompts.subset([0]), [sk.SinkDims(tuple(truth.dims))])
    assert choose_tau(reading, 5.3) == (5.3, "relative to the width")
    text = (reading["token_role"] == "text").values[:, None]
    reading["phi"] = reading["phi"].where(~text, 6.0)
    tau, source = choose_tau(reading, 5.3)
    assert tau == pytest.approx(7.0, abs=1e-3)
    assert source.startswith("half way between 6 of other and 8 of first tokens, as 5.3 relative to the width")
    with pytest.raises(MetricError, match="phi_gap: no gap"):
        choose_tau(reading.assign(phi=reading["phi"].where(~text, 7.0)), 5.3)


def test_the_threshold_scales_with_the_width():
    model, _, _ = planted()
    assert tau_of(model, VarSettings(tau=20.0)) == 20.0
    assert tau_of(model, VarSettings()) == pytest.approx(metrics.residual.phi_threshold(0.3125, 64))
    assert metrics.residual.phi_threshold(0.3125, 4096) == 20.0


def test_a_model_without_sinks_is_told():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7]] * 2, model)
    with pytest.raises(MetricError, match=r"sink_dims: no dimension of .* passes 'width_relative' at the first token"):
        sink_dims(model, prompts)


def test_what_is_refused():
    model, prompts, _ = planted()
    with pytest.raises(EditError, match=r"VarSettings\(rhos=\[\]\): no value to choose from"):
        var(model, examples([0]), examples([1]), VarSettings(rhos=[]))
    with pytest.raises(PromptError, match=r"Examples: 4 prompts but 1 answers\. Give one token id per prompt"):
        Examples(prompts, (3,))
    with pytest.raises(PromptError, match=r"Examples\.split\(share=0\.5\): 1 prompts leave one part empty"):
        examples([0]).split()


def test_a_split_uses_every_prompt_once():
    calibration, test = examples([0, 1, 2, 3]).split(0.5, seed=1)
    digests = [p.prompts.subset([i]).digest for p in (calibration, test) for i in range(2)]
    assert sorted(digests) == sorted(planted()[1].subset([i]).digest for i in range(4))
