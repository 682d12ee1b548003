"""What may be written into the arguments of the public calls: an error of ours, or the right answer, checked."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given
from hypothesis import strategies as st
from vlm_models import tokenizer

import sinkscope as sk
from hostile.sizes import tries
from sinkscope import cli, testing

pytestmark = pytest.mark.filterwarnings("ignore::sinkscope.errors.SinkscopeWarning")

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
"""Texts of any characters: controls, escapes, halves of characters, right-to-left."""
NUMBER = st.one_of(st.floats(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1e300, 3.41e38, 1e38]))
IDS = st.lists(st.integers(0, 20), min_size=1, max_size=6)
LAYERS = st.one_of(st.none(), st.lists(st.integers(-1, 4), max_size=3), st.integers(-1, 4))
KEYS = st.one_of(
    st.sampled_from(["first", "last", "all", "text", "bos", "image", "nix"]),
    st.lists(st.integers(-1, 7), max_size=3),
)


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama", vocab_size=512, bos_token_id=0), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def reading(model):
    return sk.run(model, sk.Prompts.from_ids([[1, 5, 9, 4], [1, 6, 2, 3]], model), [sk.KeyMass(), sk.Entropy()])


def weights_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.model.state_dict().items()}


@tries(40)
@given(st.lists(ANY_TEXT, max_size=3), st.sampled_from(["auto", True, False]))
@example(["a\ud800"], "auto")
@example(["\x00", "\u202e</script>"], True)
def test_texts(model, texts, add_bos):
    try:
        prompts = sk.Prompts.from_texts(texts, model, add_bos)
    except sk.PromptError:
        assert not texts or any(not text or any("\ud800" <= c <= "\udfff" for c in text) for text in texts)
        return
    assert len(prompts) == len(texts)
    for text, ids in zip(texts, prompts.ids, strict=True):
        own = model.tokenizer(text)["input_ids"]
        bare = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.tolist() in ([own] if add_bos == "auto" else [own, [0, *own], bare])


@tries(40)
@given(st.lists(st.lists(st.integers(-2, 600), max_size=5), max_size=3))
def test_ids(model, ids):
    fits = bool(ids) and all(row and all(0 <= i < 512 for i in row) for row in ids)
    try:
        prompts = sk.Prompts.from_ids(ids, model)
    except sk.PromptError:
        assert not fits
        return
    assert fits
    assert [row.tolist() for row in prompts.ids] == ids


EDITS = st.one_of(
    st.builds(lambda *a: lambda: sk.ScaleKeys(a[0], keys=a[1], layers=a[2], heads=a[3]), NUMBER, KEYS, LAYERS, LAYERS),
    st.builds(lambda *a: lambda: sk.MaskKeys(a[0], layers=a[1], keep_self=a[2]), KEYS, LAYERS, st.booleans()),
    st.builds(lambda *a: lambda: sk.ShiftLogits(a[0], keys=a[1], heads=a[2]), NUMBER, KEYS, LAYERS),
    st.builds(lambda *a: lambda: sk.ZeroValues(a[0], layers=a[1]), KEYS, LAYERS),
    st.builds(lambda a: lambda: sk.NullKey(a), NUMBER),
    st.builds(lambda *a: lambda: sk.SetActivations(a[0], dims=a[1], value=a[2]), st.sampled_from(["embed", "9"]),
              st.lists(st.integers(-1, 40), max_size=2), NUMBER),
)  # fmt: skip
"""Edits are made inside the test, so that a field which is refused counts as an answer."""


@tries(40)
@given(st.lists(IDS, min_size=1, max_size=3), st.lists(EDITS, max_size=2), st.integers(-1, 4))
def test_run(model, ids, edits, batch_size):
    before, prompts = weights_of(model), sk.Prompts.from_ids(ids, model)
    try:
        found = sk.run(model, prompts, [sk.KeyMass()], [edit() for edit in edits], batch_size=batch_size)
    except sk.SinkscopeError:
        found = None
    after = weights_of(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    if found is not None:
        real = (found.token_role != "").values & (found.token_role != "pad").values
        assert (np.isfinite(found.key_mass.values) == real[:, None, None, :]).all()


@tries(12, 300)
@given(st.dictionaries(ANY_TEXT, st.lists(EDITS, max_size=2), max_size=2), st.integers(0, 3))
def test_a_sweep_is_its_runs_or_an_error(model, variants, batch_size):
    prompts = sk.Prompts.from_ids([[1, 5, 9], [1, 6, 2, 3]], model)
    try:
        listed = {label: [edit() for edit in edits] for label, edits in variants.items()}
        found = sk.sweep(model, prompts, listed, [sk.KeyMass()], batch_size=batch_size)
    except sk.SinkscopeError:
        return
    for label, edits in listed.items():
        alone = sk.run(model, prompts, [sk.KeyMass()], edits, batch_size=batch_size)
        np.testing.assert_allclose(found.key_mass.sel(edit=label).values, alone.key_mass.values, atol=1e-5)


@tries(12, 300)
@given(IDS, st.integers(-1, 4), st.lists(EDITS, max_size=1), st.one_of(st.none(), st.integers(-2, 520), NUMBER))
def test_generate(model, ids, count, edits, end):
    prompts = sk.Prompts.from_ids([ids], model)
    try:
        longer = sk.generate(model, prompts, [edit() for edit in edits], count, eos_token_id=end)
    except sk.SinkscopeError:
        return
    assert longer.ids[0][: len(ids)].tolist() == ids
    assert 1 <= longer.lengths[0] - len(ids) <= count
    assert (longer.ids[0] < 512).all()


@tries(60)
@given(st.lists(st.floats(width=32), min_size=2, max_size=9), st.floats(), st.integers(-1, 40), st.floats(0, 2))
def test_compare(values, shift, resamples, level):
    one = xr.DataArray(np.asarray(values, dtype=np.float64), dims="prompt", name="token_loss")
    with np.errstate(all="ignore"):
        try:
            how = sk.metrics.Resampling(resamples, 0, level)
            found = sk.metrics.compare(one, to=one * 0.5 + shift, resampling=how)
        except sk.MetricError:
            return
        except RuntimeWarning:
            assert not np.isfinite(values).all() or not math.isfinite(shift) or np.abs(values).max() > 1e150
            return
    p = float(found["p_value"])
    assert math.isnan(p) or 0 < p <= 1
    if math.isfinite(float(found["low"])):
        assert float(found["low"]) <= float(found["high"])


@tries(25)
@given(ANY_TEXT, ANY_TEXT, st.lists(ANY_TEXT, min_size=4, max_size=4))
@example("\x00.nc", "a", ["</script>"] * 4)
@example("../x", "\ud800", ["a"] * 4)
def test_save_and_open(reading, name, note, tokens):
    changed = reading.assign_attrs(note=note).assign_coords(token=(("prompt", "key"), [tokens, tokens]))
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "inner"
        where.mkdir()
        try:
            path = sk.save(changed, os.path.join(where, name.replace("/", "")))
            found = sk.open(path)
        except (sk.OutputError, sk.SchemaError):
            assert all(part.stat().st_size > 0 for part in where.iterdir() if part.is_file())
            return
        assert [part.name for part in where.iterdir()] == [path.name]
        xr.testing.assert_equal(found, changed)


COMMANDS = ("run", "show", "plot", "report", "compare", "sweep", "survey", "models", "cite", "explain")
WORDS = st.one_of(
    ANY_TEXT,
    st.sampled_from(["r.nc", "nix:model", "sink-map", "key_mass", "key-mass", "mask-keys keys=first", "1.5", "a.png"]),
    st.sampled_from(
        ["--output", "--table", "--text", "--layers", "--help", "--batch-size", "--probe", "--edit", "--cache"]
    ),
)


@tries(40, 600)
@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=5))
@example("show", ["r.nc", "--table", "nix"])
@example("run", ["nix:model", "--text", "a", "--probe", "sink-dims dims=1.5"])
def test_the_command_line(reading, command, words):
    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            sk.save(reading, "r.nc")
            code = cli.main([command, *words])
        finally:
            os.chdir(before)
    assert code in (0, 1, 2)
