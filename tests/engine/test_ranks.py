"""A model cut over two processes by heads (tensor parallelism, gloo) is read as in one piece."""

import multiprocessing
import os
import socket
import traceback

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope as sk
from sinkscope.errors import ProbeError, UnsupportedModelError
from sinkscope.models.ranks import mesh_of

IDS = [list(range(3, 13)), list(range(20, 27))]
PROBES = (
    sk.KeyMass(), sk.Entropy(), sk.RoleShare(), sk.MaxAttention(keys="first"), sk.ValueNorm(), sk.KeyNorm(),
    sk.ResidualNorm(), sk.MassiveActivations(), sk.TokenLoss(),
)  # fmt: skip


def read(folder, **how):
    model = sk.load_model(folder, **how)
    return model, sk.Prompts.from_ids(IDS, model)


def rank(number, port, folder, output):
    """One of the two processes: read, be refused, write the reading."""
    try:
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        model, prompts = read(folder, tp_plan="auto")
        assert mesh_of(model.model).size() == 2
        for probe in (sk.AttentionMap(layers=[0], heads=[3]), sk.Contribution(), sk.WriteNorm()):
            with pytest.raises(ProbeError, match="single heads of the whole model or at what they write"):
                sk.run(model, prompts, probe)
        with pytest.raises(UnsupportedModelError, match="edits would not mean the same"):
            sk.run(model, prompts, sk.KeyMass(), [sk.MaskKeys("first")])
        with pytest.raises(UnsupportedModelError, match="cache= would not mean the same"):
            sk.run(model, prompts, sk.KeyMass(), cache=output / "cache")
        with pytest.raises(UnsupportedModelError, match=r"split over 2 ranks .* Only sinkscope\.run"):
            sk.survey(model, IDS, sk.KeyMass())
        sk.save(sk.run(model, prompts, PROBES, batch_size=2), output / f"{number}.nc")
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)  # without the ends of the parent's tests


def test_two_ranks_read_what_one_process_reads(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # what is imported need not be imported again
    ranks = [fork.Process(target=rank, args=(k, port, tmp_path / "model", tmp_path)) for k in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(240)
        assert each.exitcode == 0
    model, prompts = read(tmp_path / "model")
    whole = sk.run(model, prompts, PROBES, batch_size=2)
    assert mesh_of(model.model) is None
    for number in (0, 1):
        found = sk.open(tmp_path / f"{number}.nc")
        assert dict(found.sizes) == dict(whole.sizes)
        assert {k: v for k, v in found.attrs.items() if k != "created"} == {
            k: v for k, v in whole.attrs.items() if k != "created"
        }
        assert set(found.variables) == set(whole.variables)
        for name in whole.variables:
            if whole[name].dtype.kind == "f":
                torch.testing.assert_close(
                    torch.tensor(found[name].values), torch.tensor(whole[name].values), rtol=1e-5, atol=1e-5,
                    equal_nan=True,
                )  # fmt: skip
            else:
                assert (found[name].values == whole[name].values).all(), name
        # Rank by rank the parts differ, so that a part repeated would be seen.
        assert not (
            found["key_mass"].isel(head=slice(2)).values == found["key_mass"].isel(head=slice(2, 4)).values
        ).all()
