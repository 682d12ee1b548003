"""No (query, key) tensor is ever made, whatever is asked for."""

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


def test_the_watch_sees_a_map_where_there_is_one():
    net = small("llama")
    net.set_attn_implementation("eager")
    with Largest() as seen, torch.no_grad():
        net(testing.text_ids(net, batch=1, length=LENGTH))
    assert seen.square
    assert seen.numel >= LENGTH**2
