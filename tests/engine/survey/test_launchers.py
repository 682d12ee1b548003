"""Surveys shared out by other people's engines: dask and Ray give what one pass gives, bit for bit."""

import pytest

import sinkscope as sk
from tests.engine.survey.test_survey import PROBES, SMALL, assert_same


def worker(folder, ids):
    """What a worker of a cluster runs for one of four shards; a closure, as workers cannot import the tests."""
    return lambda k: sk.survey(sk.load_model(folder), ids, PROBES, shard=f"{k}/4", settings=SMALL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A model's folder, prompts, and the survey of them in one pass."""
    import numpy as np

    from sinkscope import testing

    folder = tmp_path_factory.mktemp("model")
    testing.tiny("llama").save_pretrained(folder)
    random = np.random.default_rng(0)
    ids = [[1, *random.integers(3, 60, size).tolist()] for size in random.integers(2, 30, 23)]
    return folder, ids, sk.survey(sk.load_model(folder), ids, PROBES, settings=SMALL)


@pytest.mark.filterwarnings("ignore")  # dask's own, on a cluster inside one process
def test_dask(corpus, tmp_path):
    distributed = pytest.importorskip("distributed")
    folder, ids, whole = corpus
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        parts = client.gather(client.map(worker(folder, ids), range(1, 5)))
    assert_same(sk.merge(parts), whole)


@pytest.mark.filterwarnings("ignore")  # ray's own
@pytest.mark.timeout(180)
def test_ray(corpus, monkeypatch):
    ray = pytest.importorskip("ray")
    folder, ids, whole = corpus
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        shard = ray.remote(num_cpus=1)(worker(folder, ids))
        parts = ray.get([shard.remote(k) for k in range(1, 5)])
    finally:
        ray.shutdown()
    assert_same(sk.merge(parts), whole)
