"""A run that was killed goes on where it was; a reading that will be large is announced."""

import logging
import resource

import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine import reading, results
from sinkscope.engine import run as engine

LENGTHS = (9, 6, 7, 4, 8, 5, 9, 3)
PROBES = (sk.TokenLoss(), sk.KeyMass(), sk.MassiveActivations())


def read(cache, *, batch_size=1, lengths=LENGTHS, edits=(), probes=PROBES):
    model = sk.load_model(testing.tiny("llama"))
    rows = testing.text_ids(model.model, batch=len(lengths), length=max(lengths))
    prompts = sk.Prompts.from_ids([r[:n].tolist() for r, n in zip(rows, lengths, strict=True)], model)
    return sk.run(model, prompts, probes, edits, batch_size=batch_size, cache=cache)


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes that are made."""
    made, plain = [], engine.read_batch
    monkeypatch.setattr(engine, "read_batch", lambda *args: made.append(1) or plain(*args))
    return made


def same(first, second):
    first, second = first.copy(), second.copy()
    first.attrs.pop("created"), second.attrs.pop("created")
    return first.identical(second)


@pytest.mark.parametrize("edits", [(), (sk.MaskKeys("first", layers=[1]), sk.ScaleKeys(keys="first", gamma=0.5))])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_done_is_not_done_again_and_the_numbers_are_the_same(tmp_path, passes, edits, batch_size):
    plain = read(None, edits=edits, batch_size=batch_size)
    passes.clear()
    whole = read(tmp_path, edits=edits, batch_size=batch_size)
    done = sorted(tmp_path.glob("*.result"))
    assert len(done) == len(passes) == -(-len(LENGTHS) // batch_size)
    assert same(plain, whole)
    for path in done[::2]:
        path.unlink()
    passes.clear()
    assert same(plain, read(tmp_path, edits=edits, batch_size=batch_size))
    assert len(passes) == len(done[::2])
    passes.clear()
    assert same(plain, read(tmp_path, edits=edits, batch_size=batch_size))
    assert passes == []


def test_other_prompts_probes_edits_and_batches_are_computed(tmp_path, passes):
    read(tmp_path)
    for other in (
        {"lengths": LENGTHS[:-1]}, {"probes": PROBES[:1]}, {"edits": [sk.ScaleKeys(keys="first", gamma=0.5)]},
        {"edits": [sk.ScaleKeys(keys="first", gamma=0.25)]}, {"batch_size": 2},
    ):  # fmt: skip
        passes.clear()
        read(tmp_path, **other)
        assert passes, other


def test_an_interrupted_run_goes_on(tmp_path, passes, monkeypatch):
    edits, counted = [sk.MaskKeys("first", layers=[1])], engine.read_batch

    def stopped(*args):
        if len(passes) == 3:
            raise KeyboardInterrupt
        return counted(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "read_batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path, edits=edits)
    assert len(list(tmp_path.glob("*.result"))) == 3
    passes.clear()
    found = read(tmp_path, edits=edits)
    assert len(passes) == len(LENGTHS) - 3
    assert same(read(None, edits=edits), found)


def test_an_edit_without_effect_is_still_refused(tmp_path):
    edits = [sk.MaskKeys(keys=[0], queries=[0])]  # this row sees nothing but the masked key, and is left alone
    for _ in range(2):
        with pytest.raises(sk.EditHasNoEffect):
            read(tmp_path, edits=edits)


def test_a_full_disk_loses_nothing(tmp_path, passes):
    plain = read(None)
    passes.clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        said = r"run\(cache=.*a result cannot be written \(.*\)\. 1 of 8 results are kept in memory\. Make room"
        with pytest.raises(sk.OutputError, match=said):
            read(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    passes.clear()
    assert same(plain, read(tmp_path))
    assert len(passes) == len(LENGTHS) - 1
    assert results.unwritten == {}


def test_a_hook_of_the_users_switches_it_off(tmp_path):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12]], model)
    handle = model.model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: 3 * out)
    with pytest.warns(UserWarning, match=r"run\(cache=\.\.\.\): nothing is cached\. .* has a forward hook of yours"):
        found = sk.run(model, prompts, [sk.TokenLoss()], cache=tmp_path)
    handle.remove()
    assert found.attrs["cache"].startswith("off: ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(sk.OutputError, match=r"run\(cache=.*this is a file\. Name a folder for the finished results"):
        read(tmp_path / "file")


def test_a_large_reading_is_announced_with_the_call_that_would_do(monkeypatch, caplog):
    ds = read(None)
    size = sum(ds[name].size * 4 for name in ("key_mass", "token_loss"))
    with caplog.at_level(logging.WARNING, logger="sinkscope"):
        read(None)
        assert caplog.text == ""
        monkeypatch.setattr(reading, "LARGE", size)
        read(None)
    assert "run: this reading will take" in caplog.text
    assert "sinkscope.survey(model, texts, probes)" in caplog.text


def test_the_expected_size_is_that_of_what_is_made():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12], [1, 5]], model)
    probes = (sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.ValueNorm(), sk.ResidualNorm())
    tower = engine.find_tower(model, None)
    builder = reading.ReadingBuilder(probes, tower, prompts.lengths)
    expected = builder.expected_bytes()
    for batch in engine.batches(prompts, 1, model.device):
        engine.read_batch(model, tower, batch, probes, builder, None)
    assert expected == {name: builder.arrays[name].nbytes for name in expected}
    assert list(expected.values()) == sorted(expected.values(), reverse=True)
