"""Models of quantised weights: read and edited as their own eager attention computes."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models.weights import check_finite

IDS = [[1, 5, 9, 12, 20, 7], [1, 8, 30]]
GAMMA = 0.2


def torchao_int8():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int4():
    pytest.importorskip("torchao")
    from torchao.quantization import IntxWeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4))


def quanto_int8():
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


def bitsandbytes_nf4():
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def written_out(network, folder):
    """The same model with each matrix as what its module makes of ones at a time."""
    plain = sk.load_model(folder).model
    for path, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            own = network.get_submodule(path)
            with torch.no_grad():
                module.weight.copy_(own(torch.eye(module.in_features, dtype=network.dtype)).T)
    return sk.load_model(plain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    testing.tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(place)
    return place


@pytest.mark.filterwarnings("ignore")  # their own
@pytest.mark.parametrize(
    ("made", "near"), [(torchao_int8, 1e-4), (torchao_int4, 1e-4), (quanto_int8, 1e-4), (bitsandbytes_nf4, 0.1)]
)  # the last one rounds as it multiplies, layer by layer
def test_a_quantised_model_is_read_and_edited_as_its_own_eager_attention_computes(made, near, folder):
    model = sk.load_model(folder, quantization_config=made())
    prompts = sk.Prompts.from_ids(IDS, model)
    found = sk.run(model, prompts, [sk.KeyMass(), sk.Entropy(), sk.ValueNorm(), sk.Contribution(), sk.TokenLoss()])
    plain = written_out(model.model, folder)
    unquantised = sk.run(sk.load_model(folder), prompts, sk.Entropy())
    assert float(abs(found.entropy - unquantised.entropy).max()) > 1e-4, (
        "the weights were changed, or nothing is tested"
    )
    wanted = sk.run(plain, sk.Prompts.from_ids(IDS, plain), [sk.ValueNorm(), sk.Contribution(), sk.TokenLoss()])
    for name in wanted.data_vars:
        np.testing.assert_allclose(found[name], wanted[name], atol=near, rtol=near, err_msg=str(name))
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(model.model(torch.tensor(IDS[:1]), output_attentions=True).attentions, 1).float()
    size = maps.shape[-1]
    np.testing.assert_allclose(found.key_mass[:1], maps.sum(-2) / torch.arange(size, 0, -1), atol=1e-5)
    np.testing.assert_allclose(found.entropy[:1], torch.special.entr(maps).sum(-1), atol=1e-5)
    ids, bias = torch.tensor(IDS[:1]), torch.full((size, size), torch.finfo(torch.float32).min).triu(1)
    bias[:, 0] += float(np.log(GAMMA))  # eager attention adds its mask to the scores
    with torch.no_grad():
        logits = model.model(ids, attention_mask=bias[None, None]).logits[0, :-1].float()
    edited = sk.run(model, prompts, [sk.TokenLoss()], [sk.ScaleKeys(GAMMA)]).token_loss[0]
    assert float(abs(edited - found.token_loss[0]).max()) > 1e-3, "the edit changes nothing"
    np.testing.assert_allclose(
        edited[~np.isnan(edited)], torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"), atol=1e-4
    )


@pytest.mark.filterwarnings("ignore")  # their own
def test_what_heads_write_is_refused_where_activations_are_quantised_too(folder):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    model = sk.load_model(folder, quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))
    prompts = sk.Prompts.from_ids(IDS, model)
    assert np.isfinite(sk.run(model, prompts, sk.Entropy()).entropy[0]).all()
    with pytest.raises(UnsupportedModelError, match="is not linear, so no head's part can be told"):
        sk.run(model, prompts, sk.Contribution())


class Packed(torch.Tensor):
    """A weight of two tensors that knows no operation, as those of torchao are."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(str(func))


def test_weights_that_know_no_operation_are_checked_by_their_parts():
    network = torch.nn.Linear(2, 2, bias=False)
    numbers, scale = torch.ones(2, 2, dtype=torch.int8), torch.tensor([1.0, 2.0])
    network.weight = torch.nn.Parameter(Packed(numbers, scale), requires_grad=False)
    check_finite(network, "a model")
    network.weight = torch.nn.Parameter(Packed(numbers, scale / 0), requires_grad=False)
    with pytest.raises(ModelError, match="a model: weight holds 2 of 2 numbers that are not finite"):
        check_finite(network, "a model")
