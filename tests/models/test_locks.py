"""Threads that share a model take turns, and each gets its own numbers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging

import sinkscope as sk
from sinkscope import testing
from sinkscope.models.locks import FairLock, lock_of

PROBES = [sk.KeyMass(), sk.Logits()]
EDITS = [
    [],
    [sk.MaskKeys("first", layers=[1])],
    [sk.SetActivations("0.post", dims=[3], value=5.0)],
    [sk.ScaleKeys(3.0)],
]


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    rows = testing.text_ids(model.model, batch=2, length=8)
    return model, sk.Prompts.from_ids([row.tolist() for row in rows], model)


def state_of(network):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in network.modules()]
    return hooks, [m.training for m in network.modules()], network.config._attn_implementation


def test_four_threads_of_fifty_runs_each_as_if_alone(case):
    model, prompts = case
    serial = [sk.run(model, prompts, PROBES, edits) for edits in EDITS]
    before = state_of(model.model)

    def work(which):
        handle = sk.load_model(model.model) if which % 2 else model  # two handles on one network share its lock
        return [(i % 4, sk.run(handle, prompts, PROBES, EDITS[i % 4])) for i in range(which, which + 50)]

    with ThreadPoolExecutor(4) as pool:
        found = [pair for pairs in pool.map(work, range(4)) for pair in pairs]
    assert len(found) == 200
    for which, reading in found:
        for name in reading.data_vars:
            np.testing.assert_array_equal(reading[name].values, serial[which][name].values)
    assert state_of(model.model) == before


def test_runs_wait_for_edits_that_are_applied(case):
    model, prompts = case
    plain = sk.run(model, prompts, PROBES)
    inside, done = threading.Event(), threading.Event()

    def other():
        inside.wait()
        found = sk.run(model, prompts, PROBES)
        done.set()
        return found

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other)
        with sk.applied(model, [sk.ScaleKeys(0.1)], prompts):
            inside.set()
            assert not done.wait(0.3)
        found = waiting.result()
    np.testing.assert_array_equal(found["logits"].values, plain["logits"].values)


def test_sweep_and_generate_beside_runs(case):
    model, prompts = case
    variants = {"none": [], "mask": [sk.MaskKeys("first", layers=[1])]}
    jobs = [
        lambda: sk.sweep(model, prompts, variants, [sk.TokenLoss()])["token_loss"].values,
        lambda: np.concatenate(sk.generate(model, prompts, [sk.ScaleKeys(0.1)], max_new_tokens=3, eos_token_id=-1).ids),
        lambda: sk.run(model, prompts, [sk.TokenLoss()])["token_loss"].values,
    ]
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(3) as pool:
        futures = [(i, pool.submit(jobs[i])) for _ in range(5) for i in range(3)]
        for i, future in futures:
            np.testing.assert_array_equal(future.result(), alone[i])


def test_the_lock_is_given_in_the_order_of_asking():
    lock, order = FairLock(), []

    def ask(which):
        with lock.held():
            order.append(which)

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(8)]
    with lock.held(), lock.held():  # taken twice, given back twice
        for thread in threads:
            thread.start()
            while len(lock._waiting) <= threads.index(thread):
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_whoever_stops_waiting_does_not_block_the_rest(monkeypatch):
    lock = FairLock()
    wait_for = threading.Condition.wait_for
    monkeypatch.setattr(threading.Condition, "wait_for", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), lock.held():
        pass
    monkeypatch.setattr(threading.Condition, "wait_for", wait_for)
    with lock.held():
        pass


def test_an_error_inside_gives_the_lock_back(case):
    model, prompts = case
    with pytest.raises(sk.EditHasNoEffect):
        sk.run(model, prompts, PROBES, [sk.MaskKeys("image")])
    assert lock_of(model.model)._owner is None


def test_models_that_are_loaded_in_threads_at_the_same_time_stay_tied(tmp_path):
    network = testing.tiny("llama", tie_word_embeddings=True)
    network.save_pretrained(tmp_path)
    tie, verbosity = transformers.PreTrainedModel.tie_weights, logging.get_verbosity()
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: sk.load_model(tmp_path).model, range(16)))
    assert transformers.PreTrainedModel.tie_weights is tie
    assert logging.get_verbosity() == verbosity
    for found in loaded:
        assert found.lm_head.weight is found.model.embed_tokens.weight
        assert torch.equal(found.lm_head.weight, network.lm_head.weight)
