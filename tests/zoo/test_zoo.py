"""The list of shipped models: checksums, names, and no torch at import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sinkscope import zoo
from sinkscope.errors import ModelError


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "card.json").write_text('{"fact": 1}')
    import hashlib

    checksum = hashlib.sha256(b'{"fact": 1}').hexdigest()
    row = {"description": "a model", "licence": "MIT", "files": {"card.json": checksum}}
    (tmp_path / "manifest.json").write_text(json.dumps({"one": row}))
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    return tmp_path


def test_a_listed_model_is_found_with_and_without_the_prefix(weights_folder):
    assert zoo.path("one") == weights_folder / "one" == zoo.path("zoo:one")
    assert zoo.card("one") == {"fact": 1}
    entry = zoo.entries()[0]
    assert (entry.name, entry.description, entry.licence) == ("one", "a model", "MIT")


def test_an_unknown_name_lists_what_there_is(weights_folder):
    with pytest.raises(ModelError, match=r"zoo:two: no model of that name. The zoo has one\."):
        zoo.path("zoo:two")
    (weights_folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"The zoo has no model at all"):
        zoo.path("one")


def test_a_changed_or_missing_file_is_refused(weights_folder):
    (weights_folder / "one" / "card.json").write_text('{"fact": 2}')
    with pytest.raises(ModelError, match=r"card.json has checksum \w{12}, expected \w{12}.*Install sinkscope again"):
        zoo.path("one")
    (weights_folder / "one" / "card.json").unlink()
    with pytest.raises(ModelError, match=r"card.json is missing from .*Install sinkscope again"):
        zoo.path("one")


def test_every_shipped_model_verifies_and_all_stay_under_25_megabytes():
    listed = zoo.entries()
    assert listed
    total = 0
    for entry in listed:
        folder = zoo.path(entry.name)
        total += sum(f.stat().st_size for f in folder.iterdir())
        assert set(entry.files) == {f.name for f in folder.iterdir()}
        whole = {"config.json", "model.safetensors"}
        assert "card.json" in entry.files
        assert whole <= set(entry.files) or {"parts.json", "adapter.safetensors"} <= set(entry.files)
        assert entry.description
        assert entry.licence
    assert total < 25e6


def test_importing_the_list_does_not_import_torch():
    code = "import sys, sinkscope.zoo; sinkscope.zoo.entries(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["bb-1l", "bb-1l-relu"])
def test_the_instrument_reads_a_shipped_model_as_its_own_dense_attention_does(name):
    import numpy as np
    import torch

    import sinkscope as sk
    from sinkscope.models import variants
    from sinkscope.tasks import backcopy as task

    ids = task.sample(task.zipf_chain(), 3, 64, np.random.default_rng(3))
    model = sk.load_model(f"zoo:{name}")
    reading = sk.run(model, sk.Prompts.from_ids(ids.tolist(), model), probes=[sk.KeyMass()])
    plain = variants.load(zoo.path(name))
    plain.set_attn_implementation(variants.NAME)
    with torch.no_grad():
        weights = plain(ids, output_attentions=True).attentions[0]
    want = torch.stack([weights[:, :, k:, k].mean(-1) for k in range(64)], -1)
    np.testing.assert_allclose(reading.key_mass.isel(layer=0).values, want.numpy(), atol=1e-5)
    first = float(reading.key_mass.isel(layer=0, key=0).mean())
    assert first > 0.4 if name == "bb-1l" else first < 0.05
