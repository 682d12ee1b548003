"""Numbers at their place: axes counted from the first real token, labels and coordinates."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.reading import ReadingBuilder
from sinkscope.prompts import Batch


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def tower(model):
    return model.backend.towers["text"]


def batch(real, indices):
    real = torch.tensor(real, dtype=torch.bool)
    return Batch({}, real, torch.zeros(real.shape, dtype=torch.int8), tuple(indices))


def test_rows_are_numbered_from_the_first_real_token_on_either_side(tower):
    builder = ReadingBuilder([sk.Entropy()], tower, (2, 3, 1))
    values = torch.arange(24.0).reshape(2, 4, 3)
    builder.put({"entropy": values}, batch([[0, 1, 1], [1, 1, 1]], (0, 1)), tower.attention[1])
    builder.put({"entropy": torch.full((1, 4, 2), 7.0)}, batch([[1, 0]], (2,)), tower.attention[1])
    found = builder.arrays["entropy"]
    assert found.shape == (3, 3, 4, 3)
    assert found[0, 1, 0].tolist()[:2] == [1, 2]
    assert found[1, 1, 0].tolist() == [12, 13, 14]
    assert found[2, 1, :, 0].tolist() == [7] * 4
    assert np.isnan(found[0, 1, :, 2]).all()
    assert np.isnan(found[2, 1, :, 1:]).all()
    assert np.isnan(found[:, [0, 2]]).all()


def test_both_axes_of_a_map_are_cut_to_the_real_tokens(tower):
    builder = ReadingBuilder([sk.AttentionMap(layers=[2], heads=[1])], tower, (2,))
    values = torch.arange(9.0).reshape(1, 1, 3, 3)
    builder.put({"attention": values}, batch([[0, 1, 1]], (0,)), tower.attention[2])
    assert builder.arrays["attention"].tolist() == [[[[[4.0, 5.0], [7.0, 8.0]]]]]


def test_the_size_of_maps_is_known_before(tower):
    assert ReadingBuilder([sk.KeyMass()], tower, (5, 9)).map_bytes() == 0
    alone = ReadingBuilder([sk.AttentionMap(layers=[0, 1], heads=[3]), sk.ResidualNorm()], tower, (5, 9))
    assert alone.map_bytes() == 4 * 2 * 2 * 1 * 81
    beside = ReadingBuilder([sk.AttentionMap(layers=[0, 1], heads=[3]), sk.KeyMass()], tower, (5, 9))
    assert beside.map_bytes() == 4 * 2 * 3 * 4 * 81


def test_coordinates_of_a_text_reading(model):
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 7]], model)
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.RoleShare("all"), sk.ValueNorm(), sk.Entropy()])
    assert reading.prompt.values.tolist() == [0, 1]
    assert reading.layer.values.tolist() == [0, 1, 2]
    assert reading["head"].values.tolist() == [0, 1, 2, 3]
    assert reading.kv_of_head.values.tolist() == [0, 0, 1, 1]
    assert reading.token.values.tolist() == [["#1", "#5", "#6"], ["#1", "#7", ""]]
    assert reading.token_role.values.tolist() == [["bos", "text", "text"], ["bos", "text", "pad"]]
    assert not {"key", "query", "kv_head", "grid_row"} & set(reading.coords)


def test_coordinates_of_images_are_nan_where_there_is_no_patch():
    model = sk.load_model(testing.tiny("dinov2_with_registers"))
    prompts = sk.Prompts.from_images(list(testing.pixels(model.model)), model)
    reading = sk.run(model, prompts, [sk.KeyMass()])
    assert reading.token_role.values[0].tolist() == ["bos", *["register"] * 4, *["image"] * 16]
    row, column = reading.grid_row.values[0], reading.grid_col.values[0]
    assert np.isnan(row[:5]).all()
    assert row[5:].tolist() == [r for r in range(4) for _ in range(4)]
    assert column[5:].tolist() == [c for _ in range(4) for c in range(4)]


def test_each_prompt_carries_what_pairs_it(model):
    ids = [[1, 5, 9], [1, 8, 30]]
    first, again, other = (
        sk.run(model, sk.Prompts.from_ids(each, model), [sk.TokenLoss()])["token_loss"].mean("query")
        for each in (ids, ids, [ids[0], [1, 8, 31]])
    )
    assert first["prompt_hash"].values.tolist() == again["prompt_hash"].values.tolist()
    assert int(sk.metrics.compare(first, to=again)["n"]) == 2
    with pytest.raises(sk.MetricError, match=r"compare: prompt 1 of the readings is not prompt 1 of 'to' \(1 of 2"):
        sk.metrics.compare(first, to=other)
