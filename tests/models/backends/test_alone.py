"""Padding that leaks into what is read is refused; batches that are computed as their prompts alone are not."""

import numpy as np
import pytest
import torch
import transformers
from parity.ledger import trial
from parity.ledger.entries import entry

import sinkscope as sk
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.alone import Batches
from sinkscope.testing.tiny import randomise

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = (IDS != 0).long()


def own(inputs):
    return inputs["input_ids"][..., None].double()


def leaking(inputs):
    """Each token holds the sum of its row, padding included."""
    ids = inputs["input_ids"]
    return (ids + 0.1 * ids.shape[1])[..., None].double()


def test_only_a_batch_that_differs_is_refused_and_is_run_once():
    runs = []
    batches = Batches("Model", lambda inputs: runs.append(1) or leaking(inputs), unpadded=False)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="computes a prompt in a padded batch otherwise than alone"):
            batches.check({"input_ids": IDS, "attention_mask": MASK})
    assert len(runs) == 2
    batches.check({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    batches.check({"input_ids": IDS[:1], "attention_mask": MASK[:1]})
    batches.check({"input_ids": IDS, "attention_mask": MASK, "pixel_values": torch.zeros(2, 3, 4, 4)})
    Batches("Model", own).check({"input_ids": IDS, "attention_mask": MASK})


def test_convolutions_across_padding_are_refused():
    """ConvBERT's maps of a padded prompt were off by 0.02."""
    config = transformers.ConvBertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    network = transformers.ConvBertForMaskedLM(config).eval()
    randomise(network, 0)
    model = sk.load_model(network)
    prompts = sk.Prompts.from_ids([[5, 6, 7, 8, 9], [5, 6, 7]], model)
    with pytest.raises(UnsupportedModelError, match="Use batch_size=1"):
        sk.run(model, prompts, [sk.KeyMass()], batch_size=2)
    assert sk.run(model, prompts, [sk.KeyMass()]).sizes["prompt"] == 2


def test_a_decoder_that_makes_nan_of_padding_is_refused_there_and_read_alone():
    """ProphetNet: the shorter target of a padded batch comes out as NaN, which is no fault of its weights."""
    network, _, rows = trial.built(entry("prophetnet"))
    model = sk.load_model(network)
    pairs = [(row["input_ids"][0].tolist(), row["decoder_input_ids"][0].tolist()) for row in rows]
    prompts = sk.Prompts.from_pairs(pairs, model)
    with pytest.raises(
        sk.errors.UnsupportedModelError, match=r"in a padded batch otherwise than alone\. Use batch_size=1"
    ):
        sk.run(model, prompts, [sk.KeyMass()], batch_size=2)
    alone = sk.run(model, prompts, [sk.AttentionMap([0], [0])], batch_size=1)
    for index, row in enumerate(rows):
        with torch.no_grad():
            own = network(**row, output_attentions=True).decoder_attentions[0][0, 0]
        size = own.shape[-1]
        np.testing.assert_allclose(alone.attention.isel(prompt=index).values[0, 0, :size, :size], own, atol=1e-5)
    same = sk.Prompts.from_pairs([pairs[0], pairs[0]], model)
    sk.run(model, same, [sk.KeyMass()], batch_size=2)
