"""A killed sweep goes on where it was and gives the same numbers bit for bit."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine import results as cache
from sinkscope.engine.sweep.runner import Runner

SCRIPT = """
import sys
import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.sweep import runner
runner.TOKENS["cpu"] = 24
model = sk.load_model(testing.tiny("llama"))
rows = testing.text_ids(model.model, batch=3, length=9)
prompts = sk.Prompts.from_ids([r[:n].tolist() for r, n in zip(rows, (9, 6, 7), strict=True)], model)
grid = sk.grid(sk.ScaleKeys, gamma=[0.3, 2.0], layers=range(3), heads=range(4))
found = sk.sweep(model, prompts, grid, [sk.TokenLoss(), sk.KeyMass()], cache=sys.argv[1], executor="serial")
sk.save(found, sys.argv[2])
"""


def start(cache, output):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(cache), str(output)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder / "cache", folder / "out.nc").wait() == 0
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.result")}


def test_killed_again_and_again_and_resumed_is_bit_identical(tmp_path, whole):
    total = len(files(whole / "cache"))
    assert total == 72
    folder, before = tmp_path / "cache", {}
    for share in (0.3, 0.6, 0.9):
        running = start(folder, tmp_path / "out.nc")
        while running.poll() is None and len(list(folder.glob("*.result"))) < share * total:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
        done = files(folder)
        assert share * total <= len(done) < total
        assert not (tmp_path / "out.nc").exists()
        assert {name: os.stat(folder / name).st_mtime_ns for name in before} == before
        before = {name: os.stat(folder / name).st_mtime_ns for name in done}
    assert start(folder, tmp_path / "out.nc").wait() == 0
    assert files(folder) == files(whole / "cache")
    assert {name: os.stat(folder / name).st_mtime_ns for name in before} == before
    first, second = sk.open(whole / "out.nc"), sk.open(tmp_path / "out.nc")
    first.attrs.pop("created"), second.attrs.pop("created")
    assert first.identical(second)


def sweep_of(folder, **options):
    model = sk.load_model(testing.tiny("llama", options.pop("seed", 0)))
    prompts = sk.Prompts.from_ids(options.pop("ids", [[1, 5, 9, 12]]), model)
    variants = options.pop("variants", {"mask": [sk.MaskKeys("first")]})
    return sk.sweep(model, prompts, variants, options.pop("probes", [sk.TokenLoss()]), cache=folder, **options)


def test_what_is_found_again_and_what_is_not(tmp_path, monkeypatch):
    passes = []
    compute = Runner.compute
    monkeypatch.setattr(Runner, "compute", lambda self, *args: passes.append(1) or compute(self, *args))

    def count(**options):
        passes.clear()
        sweep_of(tmp_path, **options)
        return len(passes)

    assert count() == 1
    assert count() == 0
    assert count(variants={"another name": [sk.MaskKeys("first")]}) == 0
    assert count(variants={"mask": [sk.MaskKeys("first")], "more": [sk.MaskKeys("first", layers=[1])]}) == 1
    assert count(seed=1) == 1
    assert count(ids=[[1, 5, 9, 13]]) == 1
    assert count(probes=[sk.KeyMass()]) == 1
    assert count(probes=[sk.Logits(positions=[0])]) == 1
    assert count(probes=[sk.Logits(positions=[1])]) == 1
    assert count() == 0


def test_damaged_result_is_computed_again(tmp_path):
    first = sweep_of(tmp_path)
    [path] = tmp_path.glob("*.result")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    second = sweep_of(tmp_path)
    np.testing.assert_array_equal(first["token_loss"].values, second["token_loss"].values)
    assert path.read_bytes() == whole


def test_flipped_bits_are_found(tmp_path):
    first = sweep_of(tmp_path)
    [path] = tmp_path.glob("*.result")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(8 * len(whole), size=300):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        assert cache.load(tmp_path, path.stem) is None
    second = sweep_of(tmp_path)
    np.testing.assert_array_equal(first["token_loss"].values, second["token_loss"].values)
    assert path.read_bytes() == whole


def test_a_whole_file_under_another_name_is_not_taken(tmp_path):
    sweep_of(tmp_path)
    [path] = tmp_path.glob("*.result")
    path.rename(tmp_path / f"{'0' * 64}.result")
    assert cache.load(tmp_path, "0" * 64) is None


def changes():
    def data(net):
        net.lm_head.weight.data.mul_(2)

    def view(net):
        net.lm_head.weight.detach().numpy()[:] *= 2

    def buffer(net):
        net.model.rotary_emb.inv_freq.mul_(0.5)

    def dtype(net):
        net.to(torch.bfloat16)

    def attribute(net):
        net.model.layers[1].self_attn.scaling *= 4

    def epsilon(net):
        net.model.norm.variance_epsilon = 10.0

    return [data, view, buffer, dtype, attribute, epsilon]


@pytest.mark.parametrize("change", changes(), ids=lambda f: f.__name__)
def test_a_model_that_was_changed_is_computed_again(tmp_path, change):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12]], model)
    variants = {"mask": [sk.MaskKeys("first")]}
    before = sk.sweep(model, prompts, variants, [sk.TokenLoss()], cache=tmp_path)["token_loss"].values
    change(model.model)
    after = sk.sweep(model, prompts, variants, [sk.TokenLoss()], cache=tmp_path)["token_loss"].values
    alone = sk.run(model, prompts, [sk.TokenLoss()], variants["mask"])["token_loss"].values
    np.testing.assert_allclose(after[0], alone, atol=1e-5)
    assert np.nanmax(np.abs(after - before)) > 1e-4
    assert len(list(tmp_path.glob("*.result"))) == 2


def test_a_hook_of_the_users_switches_the_cache_off(tmp_path):
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9, 12]], model)
    variants = {"mask": [sk.MaskKeys("first")]}
    plain = sk.sweep(model, prompts, variants, [sk.TokenLoss()], cache=tmp_path)
    assert "cache" not in plain.attrs
    handle = model.model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: 3 * out)
    with pytest.warns(UserWarning, match=r"nothing is cached\. .* has a forward hook of yours on model\.layers\.1"):
        found = sk.sweep(model, prompts, variants, [sk.TokenLoss()], cache=tmp_path)
    assert found.attrs["cache"].startswith("off: ")
    alone = sk.run(model, prompts, [sk.TokenLoss()], variants["mask"])["token_loss"].values
    np.testing.assert_allclose(found["token_loss"].values[0], alone, atol=1e-5)
    assert np.nanmax(np.abs(found["token_loss"].values - plain["token_loss"].values)) > 1e-4
    with ThreadPoolExecutor(1) as pool, pytest.raises(sk.UnsupportedModelError, match="which workers would not have"):
        sk.sweep(model, prompts, variants, [sk.TokenLoss()], executor=pool)
    handle.remove()


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    """Files may grow to 500 bytes only, as the system's own limit says: larger results cannot be written."""
    variants = {f"head {h}": [sk.MaskKeys("first", layers=[h % 3], heads=[h])] for h in range(3)}
    options = {"variants": variants, "probes": [sk.Logits("all"), sk.KeyMass()]}
    expected = sweep_of(tmp_path / "other", **options)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(sk.OutputError, match=r"cannot be written \(.*\)\. 1 of 3 results are kept in memory"):
            sweep_of(tmp_path / "full", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "full").iterdir()) == []
    passes = []
    compute = Runner.compute
    monkeypatch.setattr(Runner, "compute", lambda self, *args: passes.append(1) or compute(self, *args))
    found = sweep_of(tmp_path / "full", **options)
    assert len(passes) == 2
    assert cache.unwritten == {}
    assert files(tmp_path / "full") == files(tmp_path / "other")
    np.testing.assert_array_equal(found["logits"].values, expected["logits"].values)


def test_two_processes_on_one_cache(tmp_path, whole):
    running = [start(tmp_path / "cache", tmp_path / f"{i}.nc") for i in range(2)]
    assert [each.wait() for each in running] == [0, 0]
    assert files(tmp_path / "cache") == files(whole / "cache")
    found = [sk.open(path) for path in (whole / "out.nc", tmp_path / "0.nc", tmp_path / "1.nc")]
    for each in found:
        each.attrs.pop("created")
        assert each.identical(found[0])


def test_cache_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(sk.OutputError, match=r"this is a file\. Name a folder for the finished results"):
        sweep_of(path)
