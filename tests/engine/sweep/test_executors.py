"""Executors: threads, processes, dask with a worker killed in the middle, submitit; all give the serial numbers."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.sweep import executors, runner


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    rows = testing.text_ids(model.model, batch=2, length=8)
    prompts = sk.Prompts.from_ids([row.tolist() for row in rows], model)
    grid = sk.grid(sk.ScaleKeys, gamma=[0.3, 2.0], layers=range(3), heads=range(4))
    limit, runner.TOKENS["cpu"] = runner.TOKENS["cpu"], 16
    probes = [sk.TokenLoss(), sk.KeyMass()]
    yield model, prompts, grid, probes, sk.sweep(model, prompts, grid, probes, executor="serial")
    runner.TOKENS["cpu"] = limit


def assert_same(found, serial):
    assert set(found.data_vars) == set(serial.data_vars)
    for name in serial.data_vars:
        np.testing.assert_array_equal(found[name].values, serial[name].values)


def test_threads(case):
    model, prompts, grid, probes, serial = case
    with ThreadPoolExecutor(1) as pool:
        found = sk.sweep(model, prompts, grid, probes, executor=pool)
    assert_same(found, serial)
    assert found.attrs["executor"] == "ThreadPoolExecutor"


def test_processes(case):
    model, prompts, grid, probes, serial = case
    found = sk.sweep(model, prompts, grid, probes, executor="processes")
    assert_same(found, serial)
    assert found.attrs["executor"].endswith("processes")


@pytest.mark.filterwarnings("ignore")  # dask's own, on a cluster that loses a worker
def test_dask_with_a_worker_killed_in_the_middle(case, tmp_path):
    distributed = pytest.importorskip("distributed")
    model, prompts, grid, probes, serial = case
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        cache = tmp_path / "cache"
        killed = []

        def kill():
            while not len(list(cache.glob("*.result"))) >= 8:
                time.sleep(0.005)
            os.kill(victim, signal.SIGKILL)
            killed.append(len(list(cache.glob("*.result"))))

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = sk.sweep(model, prompts, grid, probes, executor=client.get_executor(), cache=cache)
        killer.join(timeout=10)
    assert killed
    assert killed[0] < 48
    assert_same(found, serial)


def test_submitit(case, tmp_path):
    submitit = pytest.importorskip("submitit")
    model, prompts, _, probes, _ = case
    variants = {"a": [sk.MaskKeys("first")], "b": [sk.MaskKeys("first", layers=[2])]}
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    found = sk.sweep(model, prompts, variants, probes, executor=executor, cache=tmp_path / "cache")
    assert_same(found, sk.sweep(model, prompts, variants, probes, executor="serial"))


def test_broken_pool_is_finished_here(case):
    model, prompts, grid, probes, serial = case

    class Broken(ThreadPoolExecutor):
        submitted = 0

        def submit(self, fn, /, *args, **kwargs):
            self.submitted += 1
            return super().submit(fn, *args, **kwargs) if self.submitted < 6 else super().submit(_break)

    with Broken(1) as pool:
        found = sk.sweep(model, prompts, grid, probes, executor=pool)
    assert_same(found, serial)


def _break():
    from concurrent.futures import BrokenExecutor

    raise BrokenExecutor("the pool is gone")


def test_model_changed_after_loading_is_noticed(case, tmp_path):
    _, prompts, _, probes, _ = case
    testing.tiny("llama").save_pretrained(tmp_path / "model")
    model = sk.load_model(tmp_path / "model")
    model.model.lm_head.weight.data.mul_(2.0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(sk.ModelError, match="is not the one in memory"):
        sk.sweep(model, prompts, {"a": [sk.MaskKeys("first")]}, probes, executor=pool)


def test_serial_unless_asked(case, monkeypatch):
    model, prompts, grid, probes, serial = case
    monkeypatch.setattr(executors, "_submitted", None)
    monkeypatch.setattr("time.perf_counter", lambda: 1e9)  # nothing that was timed decides
    found = sk.sweep(model, prompts, grid, probes)
    assert found.attrs["executor"] == serial.attrs["executor"] == "serial"
    assert_same(found, serial)


def test_worker_that_served_other_prompts_starts_anew():
    """A worker keeps its model from sweep to sweep; the pass without edits of earlier prompts is not taken over."""
    model = sk.load_model("zoo:lm-python")
    probes, variants = [sk.TokenLoss()], {"none": [], "mask": [sk.MaskKeys("first", layers=[2])]}
    with ThreadPoolExecutor(1) as pool:
        for ids in ([[1, 5, 9, 12]], [[1, 30, 31, 32]]):
            prompts = sk.Prompts.from_ids(ids, model)
            found = sk.sweep(model, prompts, variants, probes, executor=pool)
            assert_same(found, sk.sweep(model, prompts, variants, probes))


def test_executor_without_submit_is_refused(case):
    model, prompts, grid, probes, _ = case
    with pytest.raises(sk.EditError, match=r"sweep\(executor=2\): use 'serial', 'processes', or an executor with"):
        sk.sweep(model, prompts, grid, probes, executor=2)
