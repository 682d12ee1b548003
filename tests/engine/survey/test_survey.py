"""``survey``: the statistics of a run over many prompts, the same however the corpus is cut, stopped or shared out."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.survey import driver
from sinkscope.errors import OutputError, ProbeError, PromptError, SchemaError, SinkscopeWarning

PROBES = [sk.KeyMass(), sk.Entropy(), sk.RoleShare(queries="all"), sk.MassiveActivations(top=2), sk.TokenLoss()]
SMALL = sk.SurveySettings(block=4, batch_tokens=40, every=0)


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def ids():
    random = np.random.default_rng(0)
    return [[1, *random.integers(3, 60, size).tolist()] for size in random.integers(2, 30, 23)]


@pytest.fixture(scope="module")
def whole(model, ids):
    return sk.survey(model, ids, PROBES, settings=SMALL)


def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
        if name != "survey_state":  # it says in which runs the blocks were counted
            xr_equal = one[name].equals(other[name])
            assert xr_equal, name
    assert one.attrs["prompts_hash"] == other.attrs["prompts_hash"]


def test_it_gives_the_statistics_of_a_run(model, ids, whole):
    ds = sk.run(model, sk.Prompts.from_ids(ids, model), PROBES)
    first = ds.key_mass.isel(key=0).astype(float)
    np.testing.assert_allclose(whole.key_mass_mean.sel(bucket="0"), first.mean("prompt"), atol=1e-6)
    np.testing.assert_allclose(whole.key_mass_std.sel(bucket="0"), first.std("prompt"), atol=1e-6)
    np.testing.assert_allclose(whole.key_mass_max.sel(bucket="0"), first.max("prompt"), atol=1e-6)
    rows = ds.entropy.isel(query=slice(4, 8)).astype(float)
    np.testing.assert_allclose(whole.entropy_mean.sel(bucket="4-7"), rows.mean(["prompt", "query"]), atol=1e-6)
    assert (whole.entropy_count.sel(bucket="4-7") == rows.notnull().sum(["prompt", "query"])).all()
    loss = (whole.token_loss_mean * whole.token_loss_count).sum() / whole.token_loss_count.sum()
    assert float(loss) == pytest.approx(float(ds.token_loss.mean()), rel=1e-5)
    text = (ds.token_role == "text").rename(key="query")
    of_text = ds.entropy.astype(float).where(text).mean(["prompt", "query"])
    np.testing.assert_allclose(whole.entropy_by_role_mean.sel(role="text"), of_text, atol=1e-6)
    share = ds.role_share.astype(float).mean("prompt").sel(role="text")
    np.testing.assert_allclose(whole.role_share_mean.sel(role="text"), share, atol=1e-6)
    assert int(whole.top_dim_most[2]) == int(np.bincount(ds.top_dim[:, 2, 0].values.astype(int)).argmax())


def test_prompts_of_other_lengths_change_no_count(model, ids):
    small = sk.survey(model, ids, sk.KeyMass(), settings=SMALL)
    large = sk.survey(model, ids, sk.KeyMass())
    assert (small.key_mass_count == large.key_mass_count).all()
    np.testing.assert_allclose(small.key_mass_mean, large.key_mass_mean, atol=1e-6)


def test_the_histogram_counts_every_value_and_gives_sink_rates_and_quantiles(model, ids, whole):
    assert (whole.key_mass_histogram.sum("key_mass_bin") == whole.key_mass_count).all()
    mass = sk.run(model, sk.Prompts.from_ids(ids, model), sk.KeyMass()).key_mass.isel(key=0)
    above = whole.key_mass_histogram.sel(bucket="0").where(whole.key_mass_bin > 0.105, drop=True).sum("key_mass_bin")
    assert (above == (mass > 0.1).sum("prompt")).all()
    middle = whole.key_mass_quantile.sel(bucket="0", quantile=0.5)
    np.testing.assert_allclose(middle, mass.quantile(0.5, "prompt", method="inverted_cdf"), atol=0.0051)


def test_sinks_are_counted_by_head_and_by_token():
    model, truth = sk.testing.planted_sink(0)
    random = np.random.default_rng(1)
    start = model.bos_token_id
    ids = [[start, *random.integers(3, 40, 24).tolist()] for _ in range(6)] + [[start, 5, 6]]
    found = sk.survey(model, ids, sk.KeyMass())
    rate = found.sink_rate
    assert {(int(a), int(b)) for a, b in np.argwhere(rate.values == 1)} >= set(truth.heads)
    assert (found.sink_prompts == 6).all(), "in 3 tokens even attention passes the threshold"
    assert int(found.sink_token_id[0]) == start
    assert float(found.sink_token_count[0]) == 6
    assert found.sink_token_example.values[0, 0].startswith("[")
    ds = sk.run(model, sk.Prompts.from_ids(ids[:6], model), sk.KeyMass())
    mass = float(ds.key_mass.isel(key=0).astype(float).mean())
    assert float(found.sink_token_mass[0]) == pytest.approx(mass, rel=1e-6)
    np.testing.assert_allclose(rate, sk.metrics.sink_rate(ds, over="prompt"), atol=1e-12)


def test_shards_joined_in_any_order_are_one_pass_bit_for_bit(model, ids, whole):
    parts = [sk.survey(model, ids, PROBES, shard=f"{k}/4", settings=SMALL) for k in (4, 2, 1, 3)]
    assert_same(sk.merge(parts), whole)


def test_shards_are_joined_from_files(model, ids, tmp_path):
    paths = [tmp_path / f"{k}.nc" for k in (1, 2)]
    for k, path in enumerate(paths, start=1):
        sk.save(sk.survey(model, ids, sk.KeyMass(), shard=f"{k}/2", settings=SMALL), path)
    assert_same(sk.merge([sk.open(path) for path in paths]), sk.survey(model, ids, sk.KeyMass(), settings=SMALL))


def test_shards_can_be_joined_two_by_two(model, ids, whole):
    parts = [sk.survey(model, ids, PROBES, shard=f"{k}/4", settings=SMALL) for k in (1, 2, 3, 4)]
    with pytest.warns(SinkscopeWarning, match=r"3 blocks of the corpus are in none of these shards \(1/4, 3/4\)"):
        left = sk.merge([parts[0], parts[2]])
    with pytest.warns(SinkscopeWarning, match="3 blocks"):
        right = sk.merge([parts[1], parts[3]])
    assert_same(sk.merge([right, left]), whole)


def test_a_survey_that_was_killed_again_and_again_gives_the_same(model, ids, whole, tmp_path, monkeypatch):
    read, rounds = driver.BlockReader.read, itertools.count()

    def dying(self, block, first):
        read(self, block, first)
        if next(rounds) % 2:
            raise KeyboardInterrupt  # after the block was counted in part: what is in memory is lost

    monkeypatch.setattr(driver.BlockReader, "read", dying)
    state, deaths = tmp_path / "state", 0
    while True:
        try:
            found = sk.survey(model, iter(ids), PROBES, checkpoint=state, settings=SMALL)
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths >= 4
    assert_same(found, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]
    again = sk.survey(model, iter([]), PROBES, checkpoint=state, settings=SMALL)
    assert_same(again, whole)


def test_a_survey_that_was_killed_ten_times_at_random_gives_the_same(model, ids, tmp_path, monkeypatch):
    single = sk.SurveySettings(block=1, batch_tokens=40, every=0)
    left_alone = sk.survey(model, ids, PROBES, settings=single)
    read, draw = driver.BlockReader.read, np.random.default_rng(0)

    def dying(self, block, first):
        if draw.random() < 0.25:
            raise KeyboardInterrupt  # before a block,
        read(self, block, first)
        if draw.random() < 0.25:
            raise KeyboardInterrupt  # or when it was counted and not yet kept

    monkeypatch.setattr(driver.BlockReader, "read", dying)
    deaths, found = 0, None
    while found is None:
        try:
            found = sk.survey(model, iter(ids), PROBES, checkpoint=tmp_path / "state", settings=single)
        except KeyboardInterrupt:
            deaths += 1
    assert deaths >= 10
    assert_same(found, left_alone)


def test_a_checkpoint_of_another_survey_or_of_other_prompts_is_refused(model, ids, tmp_path):
    state = tmp_path / "state"
    sk.survey(model, ids, sk.KeyMass(), checkpoint=state, shard="1/2", settings=SMALL)
    with pytest.raises(OutputError, match="it belongs to another survey: probes is"):
        sk.survey(model, ids, sk.KeyMass(keys="first"), checkpoint=state, shard="1/2", settings=SMALL)
    with pytest.raises(OutputError, match=r"it belongs to shard 1/2\. Give each shard its own file"):
        sk.survey(model, ids, sk.KeyMass(), checkpoint=state, shard="2/2", settings=SMALL)
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(OutputError, match="it is damaged"):
        sk.survey(model, ids, sk.KeyMass(), checkpoint=state, shard="1/2", settings=SMALL)


def test_a_source_that_changed_under_a_checkpoint_is_refused(model, ids, tmp_path):
    def breaking():
        yield from ids[:9]
        raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        sk.survey(model, breaking(), sk.KeyMass(), checkpoint=state, settings=SMALL)
    with pytest.raises(OutputError, match="the first 8 prompts are not those that were counted"):
        sk.survey(model, (i for i in ids[1:]), sk.KeyMass(), checkpoint=state, settings=SMALL)
    assert_same(
        sk.survey(model, (i for i in ids), sk.KeyMass(), checkpoint=state, settings=SMALL),
        sk.survey(model, ids, sk.KeyMass(), settings=SMALL),
    )


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_first_pass(model, ids, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        sk.survey(model, ids, sk.KeyMass(), checkpoint=tmp_path / "no" / "state", settings=SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": [sk.Entropy()], "shard": "2/2"}, "differ in probes"),
        ({"settings": sk.SurveySettings(block=5), "shard": "2/2"}, "differ in settings"),
        ({"reduce": ["moments"], "shard": "2/2"}, "differ in reduce"),
        ({}, r"overlap: 3 blocks are in both, the first from prompt 0 on"),
        ({"source": 19, "shard": "2/2"}, "was read from a source of 23 prompts, .* from one of 19"),
        ({"model": "gpt2", "shard": "2/2"}, "differ in model"),
    ],
    ids=["probes", "settings", "reduce", "overlap", "length", "model"],
)
def test_shards_that_differ_or_overlap_are_refused(model, ids, change, message):
    one = sk.survey(model, ids, sk.KeyMass(), shard="1/2", settings=SMALL)
    other = {"probes": sk.KeyMass(), "shard": "1/2", "settings": SMALL} | change
    source = ids[: other.pop("source", None)]
    loaded = sk.load_model(testing.tiny(other.pop("model"))) if "model" in other else model
    with pytest.raises(OutputError, match=message):
        sk.merge([one, sk.survey(loaded, source, **other)])


def test_merge_refuses_what_is_no_survey(model, ids):
    with pytest.raises(SchemaError, match="reading 0 is no survey"):
        sk.merge([sk.run(model, sk.Prompts.from_ids(ids[:2], model), sk.KeyMass())])
    with pytest.raises(SchemaError, match=r"merge: expected readings, got \[\]"):
        sk.merge([])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"probes": []}, ProbeError, "no probes"),
        ({"probes": sk.AttentionMap([0], [0])}, ProbeError, "attention .* has no statistics over prompts"),
        ({"probes": sk.Logits()}, ProbeError, "logits .* has no statistics over prompts"),
        ({"reduce": ["mean"]}, ProbeError, r"survey\(reduce='mean'\): there are moments"),
        ({"probes": sk.Entropy(), "reduce": "sink_tokens"}, ProbeError, "Add KeyMass"),
        ({"shard": "0/4"}, PromptError, r"shard='0/4'\): write k/n"),
        ({"shard": "5/4"}, PromptError, "write k/n"),
        ({"source": []}, PromptError, "the source holds no prompts"),
        ({"source": [[1, 99999]]}, PromptError, "in the block of prompts 0 to 0: .* outside the vocabulary"),
        ({"source": ["a text"]}, PromptError, "this model has no tokenizer"),
    ],
    ids=lambda value: None,
)
def test_what_cannot_be_surveyed_is_refused(model, ids, arguments, error, message):
    given = {"source": ids, "probes": sk.KeyMass()} | arguments
    with pytest.raises(error, match=message):
        sk.survey(model, **given)


@pytest.mark.parametrize("setting", [{"block": 0}, {"batch_tokens": 1.5}, {"max_tokens": 0}, {"every": -1}])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(ProbeError, match=f"SurveySettings\\({next(iter(setting))}="):
        sk.SurveySettings(**setting)


def test_long_prompts_are_cut_and_empty_ones_left_out_and_both_are_counted(model):
    found = sk.survey(model, [[1, 5, 6, 7, 8], [], [1, 9]], sk.Entropy(), settings=sk.SurveySettings(max_tokens=3))
    told = json.loads(found.attrs["survey"])
    assert (told["prompts"], told["tokens"], told["skipped"], told["truncated"]) == (2, 5, 1, 1)
    assert found.bucket.values.tolist() == ["0", "1", "2-3"]
    assert (found.entropy_count.sum("bucket") == 5).all()


def test_batches_hold_prompts_of_like_length_within_the_budget():
    from sinkscope.engine.survey.reader import batches_of

    lengths = [9, 2, 30, 3, 8, 2]
    found = list(batches_of(lengths, 20))
    assert sorted(i for batch in found for i in batch) == list(range(6))
    assert found == [(1, 5, 3), (4, 0), (2,)]
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 20 for b in found)


def test_the_state_does_not_grow_with_the_prompts(model, ids):
    few, many = (sk.survey(model, ids * times, sk.Entropy()) for times in (2, 8))
    assert abs(few.sizes["byte"] - many.sizes["byte"]) < 100


def test_files_of_every_kind_give_the_same(tmp_path):
    import pandas as pd

    model = sk.load_model("zoo:lm-python")
    texts = ["def f(x):", "    return x + 1", "import os"]
    paths = [tmp_path / f"corpus.{kind}" for kind in ("txt", "jsonl", "parquet")]
    paths[0].write_text("\n".join(texts) + "\n")
    paths[1].write_text("".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(texts)))
    pd.DataFrame({"text": texts, "id": range(3)}).to_parquet(paths[2])
    found = [sk.survey(model, source, sk.Entropy()) for source in (texts, *paths)]
    for other in found[1:]:
        assert_same(found[0], other)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "no such file"),
        ("a.csv", "x", "prompts are read from"),
        ("a.jsonl", "{", "line 1 is no JSON"),
        ("a.jsonl", '{"body": "x"}', r"prompt 0 has \['body'\], not one of the columns text"),
        ("a.jsonl", '{"text": 5}', "prompt 0 is a int, neither a text nor a list of token ids"),
        ("a.txt", b"\xff", "cannot be read"),
        ("a.parquet", "PAR", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_refused(model, tmp_path: Path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptError, match=message):
        sk.survey(model, path, sk.Entropy())


def test_a_source_that_is_no_list_is_refused(model):
    with pytest.raises(PromptError, match="the source is a dict"):
        sk.survey(model, {"text": "x"}, sk.Entropy())
