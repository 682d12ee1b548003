"""The recipes at tiny scale: data laws, equal reruns, resuming, and the paper's test vector."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from recipes import bigram_backcopy as bb
from recipes import corpus
from recipes import language_model as lm
from sinkscope.errors import ModelError
from sinkscope.models import variants
from sinkscope.tasks import backcopy as task
from sinkscope.tasks import corpora


def test_sequences_follow_the_backcopy_rule_and_the_chain():
    chain = task.zipf_chain(triggers=8)
    ids = task.sample(chain, 400, 40, np.random.default_rng(0)).numpy()
    assert (ids[:, 0] == chain.bos).all()
    assert (ids[:, 1:] < chain.bos).all()
    assert (ids[:, 1] >= 8).all()
    trigger = ids < 8
    assert not (trigger[:, 1:-1] & trigger[:, 2:]).any()
    at = np.argwhere(trigger[:, 2:-1])
    assert len(at) > 1000
    assert all(ids[b, t + 3] == ids[b, t + 1] for b, t in at)
    first = np.bincount(ids[:, 1], minlength=64)[8:] / 400
    assert np.abs(first - chain.conditional[chain.bos][8:]).max() < 0.06


def test_the_chain_is_sorted_stochastic_and_stationary():
    chain = task.zipf_chain()
    np.testing.assert_allclose(chain.conditional.sum(-1), 1)
    np.testing.assert_allclose(chain.marginal @ chain.conditional[:-1], chain.marginal, atol=1e-12)
    assert (np.diff(chain.marginal) <= 0).all()
    assert 2.0 < chain.entropy().mean() < np.log(64)


def test_the_oracle_has_no_excess_risk_and_the_uniform_guess_loses_log_65():
    chain = task.zipf_chain(vocab=20, triggers=3)
    ids = task.sample(chain, 50, 30, np.random.default_rng(0))
    law = torch.from_numpy(chain.conditional)[ids]
    law = torch.cat([law, torch.zeros(*ids.shape, 1)], -1)
    previous = torch.cat([ids[:, :1], ids[:, :-1]], 1)
    copy = torch.nn.functional.one_hot(previous, 21).double()
    oracle = torch.where((ids < 3)[..., None], copy, law)
    out = task.risks(chain, ids, oracle.clamp(min=1e-30).log())
    assert out["backcopy_risk"] == pytest.approx(0, abs=1e-6)
    assert out["bigram_excess"] == pytest.approx(0, abs=1e-6)
    flat = task.risks(chain, ids, torch.zeros(50, 30, 21))
    assert flat["backcopy_risk"] == pytest.approx(np.log(21))


def test_sink_logit_gap_on_the_vector_of_the_papers_code():
    rows = [[2, 9, 9, 9, 9], [3, 1, 9, 9, 9], [4, 0, 1, 9, 9], [5, 1, -1, 2, 9], [6, 2, 0, 1, 3]]
    gap = task.sink_logit_gap(torch.tensor([rows], dtype=torch.float32), torch.tensor([[65, 1, 2, 1, 3]]), 66)
    assert gap[[1, 2, 3]].tolist() == [5, 4, 5]
    assert gap[65].isnan()
    assert gap[10].isnan()


@pytest.mark.parametrize("arm", ["bb-1l", "bb-1l-relu", "bb-3l-sgd"])
def test_backcopy_reruns_are_equal_and_save_a_loadable_folder(arm, tmp_path):
    config = dataclasses.replace(bb.ARMS[arm], steps=4, batch=4, length=16, width=16, warmup=2)
    model, curve, _ = bb.train(config)
    again, _, _ = bb.train(config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [row["step"] for row in curve] == [0, 1, 2, 3, 4]
    assert len(curve[0]["bos_attention"]) == config.layers
    assert curve[-1]["bigram_risk"] < curve[0]["bigram_risk"]
    bb.save(model, curve, config, tmp_path)
    loaded = variants.load(tmp_path)
    ids = bb.build_tokenizer().encode("A b C").ids
    assert ids == [64, 0, 27, 2]
    torch.testing.assert_close(loaded(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)
    assert loaded.config.sinkscope_triggers == list(range(config.triggers))
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 4


def test_backcopy_statistics_of_a_planted_head():
    config = dataclasses.replace(bb.BackcopyConfig(), length=12, width=8)
    model = bb.build_model(config).eval()
    attention = model.transformer.h[0].attn
    with torch.no_grad():
        attention.c_attn.weight.zero_()
        attention.c_attn.bias.zero_()
    chain = task.zipf_chain()
    ids = task.sample(chain, 20, 12, np.random.default_rng(0))
    stats = bb.backcopy_statistics(model, chain, ids)
    uniform = 1 / torch.arange(1, 13).expand(20, 12)
    assert stats["bos_attention"][0] == pytest.approx(float(uniform[ids >= 8].mean()), rel=1e-5)
    assert stats["bos_attention_trigger"][0] == pytest.approx(float(uniform[ids < 8].mean()), rel=1e-5)
    assert stats["sink_logit_gap"] == [0.0]
    assert stats["other_value"] == [0.0]
    assert stats["drained_attention"][0] > stats["bos_attention"][0]


def test_unknown_optimiser_is_refused():
    with pytest.raises(ModelError, match=r"optimizer='lion': unknown. Use adamw or sgd"):
        bb.train(dataclasses.replace(bb.BackcopyConfig(), optimizer="lion", steps=1))


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "lib"
    root.mkdir()
    for i in range(40):
        body = "\n".join(f"def function_{i}_{j}(x, y):\n    return x + {i * j}\n" for j in range(12))
        (root / f"m{i}.py").write_text(body)
    return root


TINY = lm.LanguageModelConfig(
    layers=2, heads=2, width=16, mlp=24, vocab=300, length=24, batch=2, steps=6, warmup=2, lr=1e-2, repeat_share=0.5
)


def test_language_model_reruns_are_equal_and_a_resumed_run_is_too(source, tmp_path):
    whole = lm.train(TINY, tmp_path / "a", source, measure_every=3)
    lm.train(TINY, tmp_path / "b", source, measure_every=3, stop_at=3)
    parts = lm.train(TINY, tmp_path / "b", source, measure_every=3)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "curve.jsonl").read_text().splitlines()]
    assert steps == [1, 3, 6]
    rows = [json.loads(line) for line in (tmp_path / "a" / "curve.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["tokens"] == 46


@pytest.mark.parametrize(
    "extra", [
        {"normaliser": "sigmoid"}, {"extra_key": True}, {"gate": True}, {"bos": False}, {"gate_elements": True},
        {"fixed_at": 2}, {"random_first": 1}, {"extra_key": True, "extra_value": True}, {"value_bias": True},
        {"sink_token": True}, {"prefix": 3}, {"positions": "learned"}, {"positions": "alibi"}, {"positions": "none"},
        {"normaliser": "sigmoid_normalised"},
    ],
)  # fmt: skip
def test_language_model_variants_train(source, tmp_path, extra):
    model = lm.train(dataclasses.replace(TINY, steps=2, **extra), tmp_path / "v", source, measure_every=2)
    variants.save(model, tmp_path / "w")
    again = variants.load(tmp_path / "w")
    ids = torch.arange(10)[None]
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)
    for name in {"extra_key", "extra_value", "value_bias"} & set(extra):
        assert any(getattr(layer.self_attn, name).abs().max() > 0 for layer in model.model.layers)


def test_a_token_always_stands_at_one_place_and_others_are_drawn_in_front():
    ids = np.arange(40).reshape(2, 20) % 7 + 10
    config = dataclasses.replace(TINY, fixed_at=3, random_first=2)
    found = lm.arranged(ids.copy(), config, np.random.default_rng(0))
    assert (found[:, 3] == lm.PAD).all()
    assert (found[:, :2] >= 2).all()
    assert (found[:, :2] != ids[:, :2]).any()
    np.testing.assert_array_equal(found[:, 4:], ids[:, 4:])
    np.testing.assert_array_equal(lm.arranged(ids.copy(), TINY, np.random.default_rng(0)), ids)


@pytest.mark.parametrize("asked", [{"sink_token": True}, {"fixed_at": 2}])
def test_a_token_that_stands_in_every_text_learns_its_embedding(asked):
    """A padding token's stays at zero: no residual, no value, and nothing that could become a sink."""
    for config, learned in ((dataclasses.replace(TINY, **asked), True), (TINY, False)):
        model = lm.build_model(config)
        model(torch.tensor([[lm.PAD, 3, lm.PAD, 4]])).logits.square().mean().backward()
        row = model.get_input_embeddings().weight.grad[lm.PAD]
        assert bool(row.abs().max() > 0) is learned


def test_a_sink_token_stands_in_front_and_neither_it_nor_a_prefix_is_predicted():
    ids = np.arange(40).reshape(2, 20) % 7 + 10
    config = dataclasses.replace(TINY, sink_token=True)
    found = lm.arranged(ids.copy(), config, np.random.default_rng(0))
    assert (found[:, 0] == lm.PAD).all()
    np.testing.assert_array_equal(found[:, 1:], ids[:, :-1])
    logits = torch.zeros(2, 19, 30)
    logits[:, :4, 0] = 50.0  # says 0 for sure where the first four tokens are predicted, and is wrong
    given = torch.from_numpy(ids)
    plain = float(lm.next_token_loss(logits, given, TINY))
    assert plain == pytest.approx((4 * 50 + 15 * np.log(30)) / 19)
    assert float(lm.next_token_loss(logits, given, config)) == pytest.approx((3 * 50 + 15 * np.log(30)) / 18)
    without = lm.next_token_loss(logits, given, dataclasses.replace(TINY, prefix=5))
    assert float(without) == pytest.approx(np.log(30))


def test_learning_rate_warms_up_stays_and_falls():
    config = lm.LanguageModelConfig(steps=1000, warmup=100, lr=1.0, decay=0.2)
    assert lm.learning_rate(config, 0) == pytest.approx(0.01)
    assert lm.learning_rate(config, 500) == 1.0
    assert lm.learning_rate(config, 900) == pytest.approx(0.5)
    assert lm.learning_rate(config, 999) == 0.05


def test_windows_start_with_bos_and_repeat_when_asked():
    stream = np.arange(2, 5000, dtype=np.uint16)
    plain = corpus.windows(stream, 6, 32, np.random.default_rng(0))
    assert (plain[:, 0] == 0).all()
    assert (np.diff(plain[:, 1:]) == 1).all()
    repeated = corpus.windows(stream, 50, 64, np.random.default_rng(0), repeat_share=1.0)
    assert (np.diff(repeated[:, 1:]) < 0).any(1).all()
    text = corpus.windows(stream, 6, 32, np.random.default_rng(0), bos=False)
    assert text.shape == (6, 32)
    assert (text[:, 0] > 1).all()


def test_split_is_by_file_and_an_empty_folder_is_an_error(source, tmp_path):
    files = corpora.stdlib_files(source)
    train, test = corpora.split_files(files, source, held_out=4)
    assert train
    assert test
    assert set(train) | set(test) == set(files)
    assert not set(train) & set(test)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"no .py file under .*Name a folder of Python source with root="):
        corpora.stdlib_files(empty)


def test_the_tokenizer_puts_bos_first_and_round_trips(source):
    tokenizer = corpus.train_tokenizer(corpora.read_texts(corpora.stdlib_files(source)), 300)
    encoded = tokenizer.encode("def f(x):\n    return 'é'\n")
    assert encoded.tokens[0] == "<s>"
    assert encoded.ids[0] == 0
    assert tokenizer.decode(encoded.ids) == "def f(x):\n    return 'é'\n"


def test_the_first_steps_may_have_their_own_batch_and_repeats():
    config = lm.LanguageModelConfig(
        batch=8, repeat_share=0.5, start_steps=10, start_batch=16, start_repeat_share=0.25, length=11
    )
    assert lm.data_of_step(config, 9) == (16, 0.25)
    assert lm.data_of_step(config, 10) == (8, 0.5)
    assert lm.tokens_seen(config, 10) == 1600
    assert lm.tokens_seen(config, 12) == 1760


def test_a_window_starts_from_the_weights_of_the_model_without_one():
    plain, seen = lm.build_model(TINY), lm.build_model(dataclasses.replace(TINY, window=4))
    for (name, value), (other, same) in zip(plain.state_dict().items(), seen.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, same)
    ids = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    apart = (plain(ids).logits - seen(ids).logits).abs().amax((0, 2))
    assert apart[:4].max() < 1e-5
    assert apart[4:].min() > 1e-5


def test_backcopy_keeps_the_model_of_each_measured_step(tmp_path, monkeypatch, capsys):
    from sinkscope.training import checkpoints

    monkeypatch.setitem(
        bb.ARMS, "bb-1l", dataclasses.replace(bb.BackcopyConfig(), steps=2, batch=4, length=16, width=16)
    )
    monkeypatch.setattr("sys.argv", ["bigram_backcopy", "--out", str(tmp_path), "--checkpoints"])
    bb.main()
    found = checkpoints(tmp_path)
    assert list(found) == [0, 1, 2]
    weights = [variants.load(folder).transformer.wte.weight for folder in (*found.values(), tmp_path)]
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[2], weights[3])
