"""GGUF files load as what they hold, are converted once, and what cannot be read is refused with its reason."""

import importlib.util
import json
import logging

import gguf
import numpy as np
import pytest
import torch

import sinkscope as sk
from models.sources import gguf_files
from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models.sources import cache

IDS = torch.arange(3, 40)[None]


@torch.no_grad()
def logits(network):
    return network(IDS).logits


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q5_0"])
def test_a_file_gives_the_numbers_that_its_own_library_gives(tmp_path, kind):
    network = gguf_files.network()
    path = gguf_files.write(tmp_path / "tiny.gguf", network, kind=kind)
    if kind != "F32":
        types = gguf.GGMLQuantizationType
        for name, parameter in network.named_parameters():
            if parameter.ndim == 2:
                blocks = gguf.quantize(parameter.detach().numpy(), types[kind])
                values = np.array(gguf.dequantize(blocks, types[kind]), dtype=np.float32)
                parameter.data = torch.from_numpy(values)
            assert parameter.dtype == torch.float32, name
    model = sk.load_model(path)
    assert torch.equal(logits(model.model), logits(network))
    assert (model.id, model.kind, model.dtype) == ("tiny", "decoder", torch.float32)
    assert getattr(model.config, "quantization_config", None) is None


def test_readings_say_what_the_weights_were(tmp_path):
    model = sk.load_model(gguf_files.write(tmp_path / "tiny.gguf", kind="Q4_1"))
    ds = sk.run(model, sk.Prompts.from_ids([[1, 5, 6, 7]], model), [sk.KeyMass()])
    assert ds.attrs["model_origin"].startswith("de-quantised from Q4_1 (GGUF, sha256 ")
    plain = sk.load_model(gguf_files.write(tmp_path / "half.gguf", kind="F16"))
    assert plain.origin.startswith("written in float32 from F16 (GGUF, sha256 ")


def test_the_tokenizer_of_the_file_is_kept(tmp_path):
    model = sk.load_model(gguf_files.write(tmp_path / "tiny.gguf"))
    words = [gguf_files.TOKENS[i] for i in model.tokenizer("the cat").input_ids]
    assert words == ["the", "Ġ", "cat"]
    assert (model.tokenizer.bos_token, model.tokenizer.eos_token) == ("<s>", "</s>")


def test_the_table_of_tokens_is_parsed_once_at_a_load(tmp_path, monkeypatch):
    """transformers parsed it twice for want of a list of the special tokens: a third of Gemma's load."""
    path = gguf_files.write(tmp_path / "tiny.gguf")
    first = sk.load_model(path)
    parsed, load = [], json.load
    monkeypatch.setattr(json, "load", lambda file, **settings: parsed.append(file.name) or load(file, **settings))
    again = sk.load_model(path)
    assert parsed
    assert not [name for name in parsed if name.endswith("tokenizer.json")]
    assert again.tokenizer.special_tokens_map == first.tokenizer.special_tokens_map
    assert again.tokenizer.get_added_vocab() == first.tokenizer.get_added_vocab()


def test_a_folder_takes_the_name_of_the_file(tmp_path):
    gguf_files.write(tmp_path / "a.gguf")
    gguf_files.write(tmp_path / "b.gguf", gguf_files.network(1))
    first, second = (sk.load_model(tmp_path, gguf_file=name) for name in ("a.gguf", "b.gguf"))
    assert (first.id, second.id) == ("a", "b")
    assert first.fingerprint != second.fingerprint
    with pytest.raises(ModelError, match=r"no config\.json \(it holds \['a\.gguf', 'b\.gguf'\]\)\. Name gguf_file='a"):
        sk.load_model(tmp_path)
    with pytest.raises(ModelError, match=r"gguf_file='c\.gguf'\): no such file; it has \['a\.gguf', 'b\.gguf'\]"):
        sk.load_model(tmp_path, gguf_file="c.gguf")
    with pytest.raises(ModelError, match=r"give the name of a file in .*, without a path"):
        sk.load_model(tmp_path, gguf_file="../c.gguf")


def test_a_file_is_converted_once_and_known_by_its_content(tmp_path, caplog):
    path = gguf_files.write(tmp_path / "tiny.gguf", kind="Q8_0")
    with caplog.at_level(logging.WARNING, "sinkscope"):
        first = sk.load_model(path)
        again = sk.load_model(path.rename(tmp_path / "renamed.gguf"))
    assert [record.getMessage() for record in caplog.records] == [
        f"de-quantising tiny.gguf into {cache.root()}; this is done once"
    ]
    assert (first.id, again.id) == ("tiny", "renamed")
    assert first.fingerprint == again.fingerprint
    assert len(cache.entries()) == 1
    sk.load_model(gguf_files.write(tmp_path / "renamed.gguf", kind="Q4_0"))
    assert len(cache.entries()) == 2


def test_a_file_in_parts_is_joined(tmp_path):
    from sinkscope.models.sources import gguf as source

    whole = gguf_files.write(tmp_path / "whole.gguf")
    content = whole.read_bytes()
    parts = [tmp_path / f"whole.gguf.part{i}" for i in range(3)]
    for i, part in enumerate(parts):
        part.write_bytes(content[i * 20_000 : (i + 1) * 20_000 if i < 2 else None])
    found = source.convert(parts, "whole.gguf", label="whole")
    assert found.name == source.checkpoint(whole).name
    assert {file.suffix for file in cache.entries()[0].folder.iterdir()} == {".json", ".safetensors"}
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"whole\.gguf\.part1 is absent\. Install or copy the model again"):
        source.convert(parts, "whole.gguf", label="whole")


# ---------------------------------------------------------------- refused


def refused(path, error=ModelError, **settings):
    with pytest.raises(error) as caught:
        sk.load_model(path, **settings)
    assert cache.entries() == []
    assert not list(cache.root().glob(".*"))
    return str(caught.value)


def test_not_a_gguf_file(tmp_path):
    path = tmp_path / "notes.gguf"
    path.write_text("GGU, but no F")
    assert "this is not a GGUF file (it does not begin with b'GGUF')" in refused(path)


@pytest.mark.parametrize("keep", [4, 24, 3000, 0.5, -1])
def test_a_truncated_file(tmp_path, keep):
    path = gguf_files.write(tmp_path / "tiny.gguf", kind="Q4_0")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    said = refused(path)
    assert f"load_model('tiny.gguf'): this GGUF file is truncated or damaged: of its {path.stat().st_size:,} b" in said
    assert said.endswith("compare its size with that of the original.")


def test_an_architecture_that_transformers_does_not_read(tmp_path):
    said = refused(gguf_files.write(tmp_path / "tiny.gguf", architecture="clip"), UnsupportedModelError)
    assert "cannot read GGUF files of the architecture 'clip'. Load the original model" in said


def test_a_quantisation_that_cannot_be_taken_back(tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_1
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    path, network = tmp_path / "tiny.gguf", gguf_files.network()
    writer = gguf_files.header(path, network, "llama", tokenizer=True, kind="Q8_0")
    for name, array in gguf_files.tensors(network).items():
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            blocks = np.zeros((array.shape[0], array.shape[1] // elements * size), dtype=np.uint8)
            writer.add_tensor(name, blocks, raw_dtype=kind)
    gguf_files.finish(writer)
    said = refused(path, UnsupportedModelError)
    assert "a quantisation in this file cannot be de-quantised (it holds F32, Q8_1:" in said
    assert "Take a file in another one, such as Q4_K_M, Q8_0 or F16." in said


def test_a_file_without_a_tokenizer(tmp_path):
    said = refused(gguf_files.write(tmp_path / "tiny.gguf", tokenizer=False))
    assert "no tokenizer can be read from this file (it holds none)" in said


def test_a_file_that_lacks_a_tensor(tmp_path):
    said = refused(gguf_files.write(tmp_path / "tiny.gguf", without=("blk.1.ffn_up.weight",)))
    assert "'llama' cannot be loaded: 1 weights of LlamaForCausalLM are missing from the checkpoint" in said


def test_one_part_of_a_split_model(tmp_path):
    said = refused(gguf_files.write(tmp_path / "tiny-00001-of-00002.gguf"))
    assert "this is one part of a model that was split. Join the parts first" in said


def test_without_the_package(tmp_path, monkeypatch):
    path, found = gguf_files.write(tmp_path / "tiny.gguf"), importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "gguf" else found(name, *a))
    assert refused(path) == "tiny.gguf: reading GGUF files needs the package gguf. Install it with: pip install gguf"


def test_an_absent_file(tmp_path):
    assert refused(tmp_path / "no.gguf") == f"load_model('{tmp_path}/no.gguf'): there is no such file. Check the path."


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "tiny.gguf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    monkeypatch.setattr("sinkscope.models.weights.load_weights", lambda *_, **__: pytest.fail("it was de-quantised"))
    said = refused(path)
    assert "the converted model takes 0 MB and 0 MB are free in" in said
    assert "sinkscope cache --clear" in said
    assert "set SINKSCOPE_CACHE" in said
