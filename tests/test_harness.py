import json
import sys
from functools import cache
from importlib import import_module

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import applied, tasks, testing
from sinkscope.errors import EditError, EditHasNoEffect, ModelError

lm_eval = pytest.importorskip("lm_eval")
harness = import_module("sinkscope.harness")
hf = import_module("lm_eval.models.huggingface")

PAIRS = [
    ("for name in", " range"), ("for name in", " sorted(names"), ("import os\nimport", " sys\n"), ("x", " = 1"),
    ("", "import os"), ("import os\nimport", " sys"),
]  # fmt: skip
STEER = "steer-keys alpha=0.05 keys=first"


@cache
def model():
    return sk.load_model("zoo:lm-python")


def edited(edits="", batch_size=1, **options):
    return harness.EditedLM(model(), edits=edits, batch_size=batch_size, **options)


def asked(kind, arguments):
    instance = import_module("lm_eval.api.instance").Instance
    return [instance(request_type=kind, doc={}, arguments=given, idx=i) for i, given in enumerate(arguments)]


@cache
def reference():
    return hf.HFLM(model().model, tokenizer=model().tokenizer, batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_without_edits_it_scores_as_the_harness_does(batch_size):
    found = edited(batch_size=batch_size).loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    wanted = reference().loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], atol=1e-4)
    assert [f[1] for f in found] == [w[1] for w in wanted]
    assert len({round(f[0], 3) for f in found}) == len(PAIRS)


def test_rolling_windows_are_scored_as_the_harness_does():
    text = ("\nimport os\nfor name in os.listdir():\n    print(name)\n" * 3,)
    found = edited(max_length=32).loglikelihood_rolling(asked("loglikelihood_rolling", [text]), disable_tqdm=True)
    plain = hf.HFLM(model().model, tokenizer=model().tokenizer, batch_size=1, max_length=32)
    wanted = plain.loglikelihood_rolling(asked("loglikelihood_rolling", [text]), disable_tqdm=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_requests_that_differ_in_the_last_token_share_a_pass(monkeypatch):
    passes = []

    def counting(model, prompts, *rest, **options):
        passes.append(len(prompts))
        return sk.run(model, prompts, *rest, **options)

    monkeypatch.setattr(harness, "run", counting)
    pairs = [("for name in", " range"), ("for name in", " self"), ("for name in", " range"), ("x", " =")]
    found = edited().loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert passes == [2]
    assert found[0] == found[2] != found[1]


def test_a_continuation_is_scored_as_it_would_be_generated():
    lm = edited(STEER)
    context, continuation = lm._encode_pair("for name in", " sorted(names")
    assert len(continuation) > 2
    prompts = sk.Prompts.from_ids([context], model())
    ids = np.array([context + continuation])
    import torch

    with torch.no_grad(), applied(model(), lm.edits, prompts):
        logs = model().model(input_ids=torch.from_numpy(ids)).logits[0].log_softmax(-1)
    wanted = sum(float(logs[len(context) - 1 + i, token]) for i, token in enumerate(continuation))
    (found,) = lm.loglikelihood(asked("loglikelihood", [("for name in", " sorted(names")]), disable_tqdm=True)
    assert found[0] == pytest.approx(wanted, abs=1e-4)
    (plain,) = edited().loglikelihood(asked("loglikelihood", [("for name in", " sorted(names")]), disable_tqdm=True)
    assert abs(found[0] - plain[0]) > 0.1
    whole = sk.run(model(), sk.Prompts.from_ids(ids.tolist(), model()), [sk.TokenLoss()], lm.edits)["token_loss"]
    as_prompt = -float(whole.values[0][len(context) - 1 : -1].sum())
    assert abs(found[0] - as_prompt) > 1e-3  # keys of a continuation are not steered, those of a prompt are


@pytest.mark.parametrize("edits", ["", "scale-keys gamma=0.2 layers=2:6"])
def test_generation_is_that_of_generate(edits):
    texts = ["for name in", "import os\nimport"]
    lm = edited(edits, batch_size=2)
    settings = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False}
    found = lm.generate_until(asked("generate_until", [(text, settings) for text in texts]), disable_tqdm=True)
    prompts = sk.Prompts.from_texts(texts, model())
    longer = sk.generate(model(), prompts, lm.edits, 6)
    wanted = [
        model().tokenizer.decode(new[len(old) :]) for old, new in zip(prompts.ids, longer.ids, strict=True)
    ]  # fmt: skip
    assert found == wanted


def test_edits_reach_generation():
    settings = {"until": ["\n\n\n"], "max_gen_toks": 8, "do_sample": False}
    requests = asked("generate_until", [("name, path, value, key, name, path,", settings)])
    plain, masked = (edited(e).generate_until(requests, disable_tqdm=True) for e in ("", "scale-keys gamma=50"))
    assert plain != masked


def task_of(items):
    datasets = import_module("datasets")
    rows = [{"prompt": i.prompt, "options": list(i.options), "answer": i.answer} for i in items]
    return {
        "task": "made_here", "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}",
        "doc_to_target": "answer", "doc_to_choice": "{{options}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip


def test_a_benchmark_runs_on_an_edited_model():
    items = tasks.offline("copy", calibration=1, test=8).test
    edits = "scale-keys gamma=20"
    accuracies = {}
    manager = import_module("lm_eval.tasks").TaskManager(include_defaults=False)
    for given in ("", edits):
        results = lm_eval.simple_evaluate(
            "sinkscope", {"pretrained": "zoo:lm-python", "edits": given}, tasks=[task_of(items)], batch_size=8,
            bootstrap_iters=0, task_manager=manager,
        )  # fmt: skip
        accuracies[given] = results["results"]["made_here"]["acc,none"]
        assert json.loads(results["config"]["edits"]) == [e.to_dict() for e in harness.read_edits(given)]
        assert results["config"]["model_fingerprint"] == model().fingerprint
        right, encode = 0, edited()._encode_pair
        for item in items:
            ids = [encode(item.prompt, option) for option in item.options]
            whole = sk.Prompts.from_ids([context + rest for context, rest in ids], model())
            loss = sk.run(model(), whole, [sk.TokenLoss()], harness.read_edits(given), batch_size=4)["token_loss"]
            sums = [-np.nansum(loss.values[row][len(context) - 1 :]) for row, (context, _) in enumerate(ids)]
            right += int(np.argmax(sums)) == item.answer
        assert accuracies[given] == pytest.approx(right / len(items))
    assert accuracies[""] > accuracies[edits]


def test_edits_are_read_from_every_form():
    edits = (sk.ScaleKeys(0.5, layers=[1]), sk.MaskKeys("first", heads={2: [0, 3]}))
    assert harness.read_edits(sk.edits.dumps(edits)) == edits
    assert harness.read_edits([e.to_dict() for e in edits]) == edits
    assert harness.read_edits(edits) == edits
    assert harness.read_edits(edits[0]) == edits[:1]
    assert harness.read_edits("scale-keys gamma=0.5 layers=1") == edits[:1]
    assert harness.read_edits(None) == harness.read_edits("  ") == ()
    with pytest.raises(EditError, match=r"edits=3: expected text such as 'mask-keys keys=first', JSON, or edits, got"):
        harness.read_edits(3)


def test_the_class_is_registered_and_the_command_line_is_that_of_the_harness(monkeypatch):
    assert import_module("lm_eval.api.registry").get_model("sinkscope") is harness.EditedLM
    called = []
    monkeypatch.setattr(import_module("lm_eval.__main__"), "cli_evaluate", lambda: called.append(True))
    harness.main()
    assert called == [True]


def test_an_edit_that_touches_nothing_is_an_error():
    lm = edited("mask-keys keys=newline")
    settings = {"until": ["\n\n\n"], "max_gen_toks": 2}
    with pytest.raises(EditHasNoEffect, match=r"changes nothing in these prompts: none of the 1 prompts has a token"):
        lm.generate_until(asked("generate_until", [("import os", settings)]), disable_tqdm=True)
    with pytest.raises(EditHasNoEffect, match=r"changes nothing in "):
        lm.loglikelihood(asked("loglikelihood", [("import os", " x")]), disable_tqdm=True)


def test_what_is_refused():
    with pytest.raises(
        ModelError, match=r"is a model of kind 'encoder' without a tokenizer\. Benchmarks need a decoder"
    ):
        harness.EditedLM(sk.load_model(testing.tiny("bert")))
    with pytest.raises(ModelError, match=r"batch_size='auto'\): give a whole number of at least 1"):
        edited(batch_size="auto")
    with pytest.raises(ModelError, match=r"there is no option '3'\. A comma in edits= ends the argument"):
        edited("scale-keys gamma=2 heads=0", **{"3": ""})
    with pytest.raises(EditError, match=r"this model has layers 0\.\.5"):
        edited("scale-keys gamma=2 layers=9")


def test_without_the_harness_it_is_said_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "sinkscope.harness")
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(
        ModelError, match=r"needs lm-evaluation-harness, which cannot be imported .*sinkscope\[harness\]"
    ):
        import_module("sinkscope.harness")
