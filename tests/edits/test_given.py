"""Given maps: one's own change nothing, another text's equal whole maps, whichever side the padding is on."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.errors import EditError
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts


def maps_of(model, prompts, index):
    tower = model.backend.towers[model.backend.default_tower]
    probe = sk.AttentionMap(range(tower.depth), range(tower.attention[0].heads))
    found = sk.run(model, prompts.subset([index]), [probe])["attention"]
    return np.nan_to_num(found.values[0])


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert"])
def test_the_maps_of_the_prompt_itself_change_nothing(name):
    model, prompts = model_and_prompts(name)
    one, probe = prompts.subset([1]), sk.ResidualNorm()
    plain, edited = (sk.run(model, one, [probe], edits) for edits in ([], [sk.GiveMaps(maps_of(model, prompts, 1))]))
    np.testing.assert_allclose(edited["residual_norm"], plain["residual_norm"], rtol=1e-4, atol=1e-5)


def test_another_texts_map_equals_whole_maps_in_a_padded_batch():
    model, prompts = model_and_prompts("llama")
    batch = prompts.batch(range(2))
    maps = maps_of(model, prompts, 1)
    start = [int(real.int().argmax()) for real in batch.real]

    def weights(row):
        p = row.softmax()
        for prompt, first in enumerate(start):
            n = int(batch.real[prompt].sum())
            given = torch.as_tensor(maps[row.layer, :, :n, :n]).double()
            inside = slice(first, first + n)
            p[prompt, :, inside, inside] = given / given.sum(-1, keepdim=True)
        return p

    found = edited_hidden(model, prompts, [sk.GiveMaps(maps)])
    assert_close(found, dense_hidden(model, batch, Reference(weights)), batch)


def test_rows_behind_the_map_keep_their_own_weights():
    model, prompts = model_and_prompts("llama")
    one, probe = prompts.subset([1]), sk.AttentionMap([0], [0])
    even = np.ones((model.config.num_hidden_layers, model.config.num_attention_heads, 4, 4))
    plain, given = (sk.run(model, one, [probe], edits)["attention"][0, 0, 0] for edits in ([], [sk.GiveMaps(even)]))
    np.testing.assert_allclose(given[3, :4], 0.25)
    np.testing.assert_allclose(given[2, :3], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(given[4:], plain[4:], atol=1e-6)
    assert float(abs(given[3] - plain[3]).max()) > 1e-3


def test_errors():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"GiveMaps\(maps=\.\.\.\): its shape is \(2, 3\)\. Give \(layer, head, query"):
        sk.GiveMaps(np.ones((2, 3)))
    with pytest.raises(EditError, match=r"its shape is \(1, 1, 2, 2\); this model has \d+ layers of \d+ heads"):
        sk.run(model, prompts, [sk.Logits()], [sk.GiveMaps(np.ones((1, 1, 2, 2)))])
    with pytest.raises(EditError, match="a given map has every row"):
        sk.GiveMaps(np.ones((1, 1, 2, 2)), queries="last")
