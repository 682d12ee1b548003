"""Maps in parts: what is made of a few prompts at a time is what is made of all at once."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import testing
from sinkscope.methods import parts, sads, var


@pytest.fixture(scope="module")
def asked():
    from sinkscope.tasks.scene_questions import scene_questions

    model = sk.load_model("zoo:vlm-shapes")
    return model, scene_questions(model, 5, ("colour", "presence")).prompts


@pytest.mark.parametrize("size", [1, 100_000])
def test_heads_are_judged_alike_in_parts(asked, size, monkeypatch):
    model, prompts = asked
    assert len({len(ids) for ids in prompts.ids}) > 1
    whole = sads.measure(model, prompts, range(2, 4)), var.image_heads(model, prompts, 0.5, [3])
    monkeypatch.setattr(parts, "BYTES", size)
    found = sads.measure(model, prompts, range(2, 4)), var.image_heads(model, prompts, 0.5, [3])
    for one, other in zip(found, whole, strict=True):
        xr.testing.assert_allclose(one.reset_coords(drop=True), other.reset_coords(drop=True), rtol=1e-6)
    assert found[1]["selected"].dtype == bool


def test_each_part_is_read_once(monkeypatch):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 7, 8, 9], [1, 4], [1, 3, 2]], model)
    monkeypatch.setattr(parts, "BYTES", 4 * 2 * 4 * 4 * 2)  # two prompts of two maps of the longest
    seen = []

    def reduce(reading):
        seen.append(reading.sizes["prompt"])
        return reading[["attention"]].sum("key")

    found = parts.run_in_parts(model, prompts, [sk.AttentionMap(layers=[0], heads=[0, 1])], reduce, maps=2)
    assert seen == [2, 2]
    assert found["prompt"].values.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found["attention"].sum("query").values.ravel(), np.repeat([3, 4, 2, 3], 2), rtol=1e-6)
