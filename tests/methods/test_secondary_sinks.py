import numpy as np
import pytest

import sinkscope as sk
from methods.results import check_result
from methods.secondary_models import load
from sinkscope.errors import MetricError
from sinkscope.methods import secondary_sinks as secondary
from sinkscope.methods.residual import residual_stream

constructed = load()


@pytest.fixture(scope="module")
def case():
    model = constructed.build(0)
    ids = constructed.token_ids(2, 40, 5)
    ids[1] = ids[1][:30]
    return model, sk.Prompts.from_ids(ids, model), np.array(ids[0])


@pytest.fixture(scope="module")
def found(case):
    return secondary.detect(case[0], case[1])


def test_every_planted_sink_is_found_with_its_level_and_nothing_else(case, found):
    tokens = case[2]
    kind = found["kind"].values[0]
    for token, start, _, end in constructed.LEVELS:
        at = np.flatnonzero(tokens == token)
        assert len(at) == 4
        assert (kind[at] == "secondary").all()
        assert (found["start"].values[0, at] == start).all()
        assert (found["lifetime"].values[0, at] == end - start).all()
    assert (kind == "secondary").sum() == 8
    assert int(found["primary"][0]) == 0
    assert (found["stage_first"].values[0].tolist(), found["stage_last"].values[0].tolist()) == ([1], [8])
    assert set(found["born"].values[0][found["kind"].values[0] == "secondary"].tolist()) == {1}


def test_prompts_may_have_different_numbers_of_stages(case, monkeypatch):
    def interrupted(model, prompts, index):
        at = residual_stream(model, prompts, index)
        if index == 1:
            at["4.post"][0] *= 1e-3
        return at

    monkeypatch.setattr(secondary, "residual_stream", interrupted)
    found = secondary.detect(case[0], case[1])
    assert found["stage_first"].values.tolist() == [[1, -1], [1, 5]]
    assert found["stage_last"].values.tolist() == [[8, -1], [3, 8]]


def test_table_figure_and_citation(case, found):
    frame = check_result(secondary.find_secondary_sinks(case[0], case[1]))
    assert len(frame) == int((found["kind"] == "secondary").sum())
    assert (frame["score"] > frame["score_beside"]).all()


def test_levels_count_the_sinks(found):
    table = secondary.levels(found)
    assert int(table.sel(start=3, lifetime=3)) >= 5
    assert int(table.sel(start=4, lifetime=4)) >= 5
    assert int(table.sum()) == int((found["kind"].values == "secondary").sum())
    assert int(table.sum()) == table.attrs["n"]
    assert int(secondary.levels(found, "primary").sel(start=1).sum()) == 2


def test_the_score_is_the_attention_of_the_layers_that_read_it(case, found):
    mass = sk.run(case[0], case[1].subset([0]), [sk.KeyMass()])["key_mass"].isel(prompt=0).mean("head")
    key = int(np.flatnonzero(case[2] == constructed.LEVELS[0][0])[0])
    assert float(found["score"][0, key]) == pytest.approx(float(mass.isel(key=key).sel(layer=[4, 5, 6]).mean()))
    sinks = found["kind"].values[0] == "secondary"
    assert np.nanmin(found["score"].values[0, sinks] / found["score_beside"].values[0, sinks]) > 2


def test_states_are_those_of_the_model(case):
    at = residual_stream(case[0], case[1], 0)
    norm = sk.run(case[0], case[1].subset([0]), [sk.ResidualNorm()])["residual_norm"].isel(prompt=0)
    for site in ("embed", "3.mid", "9.post"):
        assert np.linalg.norm(at[site], axis=-1) == pytest.approx(norm.sel(site=site).values, rel=1e-5)


def test_a_shorter_prompt_is_filled_up_with_nothing(found):
    assert (found["kind"].values[1, 30:] == "").all()
    assert np.isnan(found["cosine"].values[1, :, 30:]).all()
    assert (found["token_role"].values[1, 30:] == "pad").all()


def test_it_is_saved_as_a_reading(found, tmp_path):
    back = sk.open(sk.save(found, tmp_path / "found.nc"))
    assert back["kind"].values.tolist() == found["kind"].values.tolist()
    assert back.attrs["min_norm"] == 3.0


def test_the_papers_own_rule_finds_no_secondary_sink_in_a_shallow_model(case):
    found = secondary.detect(case[0], case[1], secondary.SecondarySinkSettings("wong2025"))
    assert not (found["kind"].values == "secondary").any()
    assert (found["kind"].values == "extra_primary").any()


def test_neighbours_are_no_sinks_and_never_the_first_token():
    sinks = np.array([True, False, True, True, False, False])
    assert secondary.neighbours(sinks, 2) == [1, 4]
    assert secondary.neighbours(np.array([False, True, False]), 1) == [2]


def test_norm_profiles_by_group(case, found):
    reading = sk.run(case[0], case[1], [sk.ResidualNorm(), sk.KeyNorm(), sk.ValueNorm()])
    profile = secondary.norm_profiles(reading, found)
    assert profile["n"].values.tolist()[0] == 2
    assert float(profile["residual"].sel(group="primary", layer=4)) == pytest.approx(200, rel=0.01)
    size = float(profile["residual"].sel(group="secondary", layer=5))
    assert 40 < size < 60
    assert float(profile["residual"].sel(group="others", layer=5)) < 20
    drained = profile["value"].sel(layer=5)
    assert float(drained.sel(group="secondary")) < 0.5 * float(drained.sel(group="others"))
    whole = np.sqrt((reading["key_norm"].isel(key=0) ** 2).sum("kv_head")).mean("prompt")
    assert profile["key"].sel(group="primary").values == pytest.approx(whole.values, rel=1e-5)


def test_norm_profiles_of_an_empty_group_are_nan(case, found):
    reading = sk.run(case[0], case[1], [sk.ResidualNorm(), sk.KeyNorm(), sk.ValueNorm()])
    profile = secondary.norm_profiles(reading, found.assign(kind=found["kind"].where(found["kind"] == "primary", "")))
    assert np.isnan(profile["residual"].sel(group="secondary").values).all()
    assert int(profile["n"].sel(group="secondary")) == 0


def test_norm_profiles_name_the_missing_probe(case, found):
    reading = sk.run(case[0], case[1], [sk.ResidualNorm()])
    with pytest.raises(MetricError, match=r"norm_profiles needs 'key_norm'.*Add KeyNorm\(\)"):
        secondary.norm_profiles(reading, found)
