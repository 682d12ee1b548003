import numpy as np
import pytest

import sinkscope as sk
from sinkscope.errors import MetricError, UnsupportedModelError
from sinkscope.methods import secondary_mlp
from sinkscope.methods.residual import residual_stream


def test_the_mlp_writes_the_direction_and_attention_does_not(secondary_case):
    made = secondary_mlp.makers(*secondary_case)
    assert made.sizes["sink"] == 8
    assert float(made["write_cosine"].sel(part="mlp").min()) > 0.98
    assert float(abs(made["write_cosine"].sel(part="attention")).max()) < 0.2
    sizes = {3: 60.0, 4: 40.0}
    for start, size in sizes.items():
        found = made["write_norm"].sel(part="mlp").values[made["start"].values == start]
        assert found == pytest.approx(np.full(4, size), rel=0.1)


def test_only_the_output_of_the_mlp_is_like_the_primary_sinks(secondary_case):
    stage = secondary_mlp.makers(*secondary_case)["stage_cosine"]
    assert stage["stage"].values.tolist() == ["input", "gate_proj", "up_proj", "hidden", "output"]
    sink = stage.sel(who="sink").mean("sink")
    assert float(sink.sel(stage="output")) > 0.98
    assert float(abs(sink.drop_sel(stage="output")).max()) < 0.4
    assert float(abs(stage.sel(who="neighbour", stage="output").mean())) < 0.3


def test_without_the_component_the_sink_is_gone_and_without_the_rest_it_stays(secondary_case):
    removed, rest = secondary_mlp.steer(*secondary_case), secondary_mlp.steer(*secondary_case, rest=True)
    assert removed["kept"].values.tolist() == [0.0] * 8
    assert rest["kept"].values.tolist() == [1.0] * 8
    assert rest["lifetime"].values.tolist() == rest["lifetime_before"].values.tolist()
    assert float((removed["score"] / removed["score_before"]).max()) < 0.5
    assert float((rest["score"] / rest["score_before"]).min()) > 0.9


def test_factor_one_changes_nothing(secondary_case):
    same = secondary_mlp.steer(*secondary_case, factor=1.0)
    assert same["score"].values == pytest.approx(same["score_before"].values, rel=1e-5)
    assert same["kept"].values.tolist() == [1.0] * 8


def test_scaled_writes_are_undone(secondary_case):
    model, prompts, found = secondary_case
    before = residual_stream(model, prompts, 0)["9.post"]
    key = int(np.flatnonzero(found["kind"].values[0] == "secondary")[0])
    layer = int(found["start"][0, key])
    direction = residual_stream(model, prompts, 0)[f"{layer}.post"][0]
    with secondary_mlp.scaled_writes(model, layer, [key], direction, 0.0):
        inside = residual_stream(model, prompts, 0)
    unit = direction / np.linalg.norm(direction)
    write = inside[f"{layer}.post"] - inside[f"{layer}.mid"]
    assert abs(float(write[key] @ unit)) < 1e-3
    assert np.array_equal(residual_stream(model, prompts, 0)["9.post"], before)


def test_cosine_of_nothing_is_nan():
    assert secondary_mlp.cosine(np.array([1.0, 0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert np.isnan(secondary_mlp.cosine(np.zeros(2), np.ones(2)))


def test_no_sink_is_an_error_that_says_what_to_do(secondary_case):
    model, prompts, found = secondary_case
    none = found.assign(kind=found["kind"].where(found["kind"] == "primary", ""))
    with pytest.raises(MetricError, match=r"makers: no secondary sink was found. Look at levels\(found\), or use long"):
        secondary_mlp.makers(model, prompts, none)
    with pytest.raises(MetricError, match="steer: no secondary sink was found"):
        secondary_mlp.steer(model, prompts, none)


@pytest.mark.parametrize("name", ["bert", "gpt_neox"])
def test_an_mlp_behind_a_norm_or_beside_attention_is_refused(name):
    model = sk.load_model(sk.testing.tiny(name))
    with pytest.raises(UnsupportedModelError, match=r"the MLP of layer 0 of .* was not found .* Detection works"):
        secondary_mlp.mlp_of(model, 0)


def test_the_mlp_of_other_architectures_is_found():
    for name in ("gpt2", "llama", "qwen2"):
        mlp = secondary_mlp.mlp_of(sk.load_model(sk.testing.tiny(name)), 1)
        assert type(mlp).__name__.lower().endswith("mlp")
