"""No (query, key) tensor is ever made, whatever is asked for."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sinkscope as sk
from sinkscope import testing
from sinkscope.probes import LogSumExp, RowSum

LENGTH = 4096
PROBES = [
    sk.KeyMass(), sk.RoleShare(queries="text"), sk.Entropy(), sk.MaxAttention(keys=range(5, 900), queries="all"),
    RowSum(), LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.MassiveActivations(),
    sk.SinkDims(),
]  # fmt: skip


class Largest(TorchDispatchMode):
    """Remembers the largest tensor, and every tensor that is long in two dimensions."""

    def __init__(self):
        super().__init__()
        self.numel, self.square, self.calls = 0, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                stored = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numel = max(self.numel, stored)
                if sum(size >= LENGTH for size in tensor.shape) > 1 and stored >= LENGTH**2:
                    self.square.append((str(func), tuple(tensor.shape)))
        return out


def small(name, **changes):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return testing.tiny(name, num_hidden_layers=1, max_position_embeddings=LENGTH, **heads, **changes)


@pytest.mark.parametrize(
    ("name", "padded"), [("llama", 0), ("llama", 7), ("gpt_oss", 0), ("mistral", 0), ("mistral", 7)]
)
def test_all_statistics_of_a_long_prompt_make_no_map(name, padded):
    changes = {"sliding_window": 512} if name == "mistral" else {}
    net = small(name, **changes, **({"layer_types": ["full_attention"]} if name == "gpt_oss" else {}))
    model = sk.load_model(net)
    assert model.backend.towers
    lists = [
        testing.text_ids(net, batch=1, length=n)[0].tolist()
        for n in ((LENGTH, LENGTH - padded) if padded else (LENGTH,))
    ]
    prompts = sk.Prompts.from_ids(lists, model)
    with Largest() as seen:
        reading = sk.run(model, prompts, PROBES, batch_size=2)
    assert seen.calls > 100
    assert seen.square == []
    assert seen.numel < LENGTH**2 / 4
    assert reading.attrs["path"] == "blockwise"
    assert reading.key_mass.shape == (len(lists), 1, 2, LENGTH)


def test_a_prompt_of_twenty_thousand_tokens():
    """Every query's weights sum to 1, so the key masses times their viewers sum to the number of queries."""
    length = 20_000
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    net = testing.tiny("llama", num_hidden_layers=1, max_position_embeddings=length, **heads)
    model = sk.load_model(net)
    prompts = sk.Prompts.from_ids([testing.text_ids(net, batch=1, length=length)[0].tolist()], model)
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.TokenLoss()])
    viewers = length - np.arange(length)
    assert float(reading.key_mass.values[0, 0, 0].astype(float) @ viewers) == pytest.approx(length, rel=1e-4)
    assert int(reading.token_loss.notnull().sum()) == length - 1
    with pytest.raises(sk.ProbeError, match=r"the maps would take 1\.5 GiB, the limit is 1 GiB"):
        sk.run(model, prompts, [sk.AttentionMap([0], [0])])


def test_the_watch_sees_a_map_where_there_is_one():
    net = small("llama")
    net.set_attn_implementation("eager")
    with Largest() as seen, torch.no_grad():
        net(testing.text_ids(net, batch=1, length=LENGTH))
    assert seen.square
    assert seen.numel >= LENGTH**2
