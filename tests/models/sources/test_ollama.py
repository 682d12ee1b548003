"""A model of Ollama's store: the manifest names the blob."""

import hashlib
import json
import logging

import pytest

import sinkscope as sk
from models.sources import gguf_files
from sinkscope.errors import ModelError, UnsupportedModelError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Folder of a store as Ollama lays it out."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def pull(store, tmp_path, path, *, layers=None, seed=0):
    """Put a model into the store under the manifest ``path``; give its blob."""
    file = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.network(seed), kind="Q8_0")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    blob = file.rename(store / "blobs" / f"sha256-{digest}")
    kind = "application/vnd.ollama.image."
    layers = layers or [(kind + "template", "sha256:" + "0" * 64), (kind + "model", f"sha256:{digest}")]
    manifest = store / "manifests" / path
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"layers": [{"mediaType": m, "digest": d} for m, d in layers]}))
    return blob


def test_each_spelling_finds_its_model(store, tmp_path):
    pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest")
    pull(store, tmp_path, "registry.ollama.ai/library/tiny/1b", seed=1)
    pull(store, tmp_path, "registry.ollama.ai/me/tiny/latest", seed=2)
    pull(store, tmp_path, "hf.co/me/tiny-GGUF/Q8_0", seed=3)
    names = ["ollama:tiny", "ollama:tiny:1b", "ollama:me/tiny", "ollama:hf.co/me/tiny-GGUF:Q8_0"]
    models = [sk.load_model(name) for name in names]
    assert [model.id for model in models] == names
    for seed, model in enumerate(models):
        ours = gguf_files.network(seed).model.norm.weight
        assert (model.model.model.norm.weight == ours).all()
        assert model.origin.startswith("de-quantised from Q8_0")
    assert len({model.fingerprint for model in models}) == 4
    assert sk.load_model("ollama:tiny:latest").fingerprint == models[0].fingerprint


def test_an_absent_model_says_what_there_is(store, tmp_path):
    with pytest.raises(ModelError, match=r"no such model in Ollama's store \(.*store\), which has no model\. Pull it"):
        sk.load_model("ollama:tiny")
    pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest")
    pull(store, tmp_path, "hf.co/me/tiny-GGUF/Q8_0", seed=3)
    with pytest.raises(ModelError, match=r"which has ollama:hf\.co/me/tiny-GGUF:Q8_0, ollama:tiny\. Pull it"):
        sk.load_model("ollama:tiny:1b")


@pytest.mark.parametrize("name", ["ollama:", "ollama:../../etc/passwd", "ollama:a b", "ollama:a:b:c", "ollama:a/b/c/d"])
def test_a_malformed_name(store, name):
    with pytest.raises(ModelError, match=r"write ollama:NAME or ollama:NAME:TAG, as `ollama list` shows it\."):
        sk.load_model(name)


def test_a_damaged_store(store, tmp_path):
    blob = pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest")
    blob.unlink()
    with pytest.raises(ModelError, match=r"sha256-\w+ is absent\. Pull the model again with Ollama\."):
        sk.load_model("ollama:tiny")
    (store / "manifests/registry.ollama.ai/library/tiny/latest").write_text("{")
    with pytest.raises(ModelError, match=r"latest cannot be read \("):
        sk.load_model("ollama:tiny")
    pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest", layers=[("application/other", "sha256:1")])
    with pytest.raises(ModelError, match=r"its manifest names no model\. Pull it again"):
        sk.load_model("ollama:tiny")


def test_an_adapter_is_refused(store, tmp_path):
    kind = "application/vnd.ollama.image."
    layers = [(kind + "model", "sha256:" + "0" * 64), (kind + "adapter", "sha256:" + "1" * 64)]
    pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest", layers=layers)
    with pytest.raises(UnsupportedModelError, match=r"this is an adapter on top of another model"):
        sk.load_model("ollama:tiny")


def test_of_a_model_that_sees_pictures_it_is_said_that_the_language_model_alone_is_read(store, tmp_path, caplog):
    blob = pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest")
    kind = "application/vnd.ollama.image."
    layers = [(kind + "model", blob.name.replace("-", ":")), (kind + "projector", "sha256:" + "1" * 64)]
    pull(store, tmp_path, "registry.ollama.ai/library/tiny/latest", layers=layers)
    with caplog.at_level(logging.WARNING, "sinkscope"):
        sk.load_model("ollama:tiny")
    assert "ollama:tiny: only its language model is read" in caplog.records[0].getMessage()
