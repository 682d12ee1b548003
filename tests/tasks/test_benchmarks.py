import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from sinkscope import tasks
from sinkscope.errors import PromptError
from sinkscope.tasks.benchmarks import BENCHMARKS, CLASSIFICATION, MULTIPLE_CHOICE

FIVE = {"label": list("ABCDE"), "text": list("vwxyz")}
ROWS = {
    "sst2": ({"sentence": "a good film", "label": 1}, " positive", "Text: a good film"),
    "sst5": ({"text": "a good film", "label": 0}, " terrible", "Text: a good film"),
    "mr": ({"text": "a bad film", "label": 0}, " negative", "Text: a bad film"),
    "subj": ({"text": "it rained", "label": 0}, " objective", "Text: it rained"),
    "trec": ({"text": "Who wrote it?", "coarse_label": 3}, " person", "Question: Who wrote it?"),
    "cb": ({"premise": "p.", "hypothesis": "h.", "label": 2}, " Maybe", "Premise: p.\nHypothesis: h."),
    "boolq": ({"passage": "p.", "question": "is it", "answer": True}, " True", "Passage: p.\nQuestion: is it"),
    "mmlu": ({"question": "q?", "choices": ["v", "w", "x", "y"], "answer": 2}, " C", "A. v\nB. w\nC. x\nD. y"),
    "aqua": ({"question": "q?", "options": ["A)21", "B)21.5", "C)22", "D)2", "E)23"], "correct": "E"}, " E", "E. 23"),
    "mathqa": (
        {"Problem": "q?", "options": "a ) 38 , b ) 27 , c ) 1,200 , d ) none , e ) rs . 5", "correct": "c"},
        " C",
        "A. 38\nB. 27\nC. 1,200\nD. none\nE. rs . 5",
    ),
    "logiqa": (
        {"context": "c.", "query": "q?", "options": ["v", "w", "x", "y"], "correct_option": 1},
        " B",
        "Context: c.\nQuestion: q?\nA. v",
    ),
    "cqa": ({"question": "q?", "choices": FIVE, "answerKey": "B"}, " B", "B. w"),
    "piqa": ({"goal": "g", "sol1": "v", "sol2": "w", "label": 0}, " A", "Question: g\nA. v\nB. w"),
    "arc-c": (
        {"question": "q?", "choices": {"label": list("1234"), "text": list("vwxy")}, "answerKey": "4"},
        " D",
        "D. y",
    ),
}  # fmt: skip


def test_every_column_of_both_tables_has_a_reader():
    assert set(CLASSIFICATION) | set(MULTIPLE_CHOICE) == set(BENCHMARKS) == set(ROWS)
    assert (len(CLASSIFICATION), len(MULTIPLE_CHOICE)) == (7, 7)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_question(name):
    row, answer, body = ROWS[name]
    item = BENCHMARKS[name].item(row)
    assert item.options[item.answer] == answer
    assert body in item.prompt
    assert item.prompt.endswith("Answer:")
    assert item.focus


@pytest.mark.parametrize(("name", "column"), [("sst2", "label"), ("piqa", "label")])
def test_a_row_without_a_label_is_left_out(name, column):
    assert BENCHMARKS[name].item(ROWS[name][0] | {column: -1}) is None


def sst2(count, start=0):
    return [{"sentence": f"film {i}", "label": i % 2} for i in range(start, start + count)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_one_file_is_split_and_two_are_kept_apart(tmp_path):
    one = write(tmp_path / "sst2.jsonl", sst2(12))
    task = tasks.load("sst2", one, calibration=4, test=5)
    assert (len(task.calibration), len(task.test)) == (4, 5)
    other = tmp_path / "test.parquet"
    pd.DataFrame(sst2(6, 100)).to_parquet(other)
    task = tasks.load("sst2", (one, other), calibration=12, test=4)
    assert {item.focus for item in task.calibration} == {f"film {i}" for i in range(12)}
    assert {item.focus for item in task.test} < {f"film {i}" for i in range(100, 106)}
    with pytest.raises(PromptError, match=r"Task\('sst2'\): 12 of 12 test questions are in the calibration part too"):
        tasks.load("sst2", (one, one), calibration=12)


def test_a_file_of_ones_own(tmp_path):
    rows = [{"prompt": f"q{i}", "options": [" a", " b"], "answer": 1, "focus": f"{i}"} for i in range(4)]
    task = tasks.load("mine", write(tmp_path / "mine.jsonl", rows), calibration=2)
    assert {(i.options, i.answer) for i in task.test} == {((" a", " b"), 1)}
    written = write(tmp_path / "texts.jsonl", [row | {"answer": " b"} for row in rows])
    assert tasks.load("mine", written, calibration=2).test == task.test
    pd.DataFrame(rows).to_parquet(tmp_path / "mine.parquet")
    assert tasks.load("mine", tmp_path / "mine.parquet", calibration=2).test == task.test


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.jsonl", None, r"absent\.jsonl: no such file\. Give a \.jsonl or \.parquet file"),
        ("rows.csv", "a,b", r"rows\.csv: tasks are read from \.jsonl .* and \.parquet files"),
        ("rows.jsonl", "{not json", r"rows\.jsonl: cannot be read as jsonl .*\. Was the copy cut short\?"),
        ("rows.parquet", "text", r"rows\.parquet: cannot be read as parquet"),
        ("rows.jsonl", "[1]", r"rows\.jsonl: holds no rows of named columns"),
        ("rows.jsonl", '{"text": "x"}', r"row 0 has the columns \['text'\] and does not fit this task \(KeyError"),
        ("rows.jsonl", '{"sentence": "x", "label": -1}', r"no row has a label\. Use a split with answers"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=words):
        tasks.load("sst2", tmp_path / name)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(
        PromptError, match=r"load\('sst3'\): there is no such task\. Benchmarks are \['aqua', .* made here \['brackets'"
    ):
        tasks.load("sst3")


def test_tasks_made_here_are_loaded_by_name_and_suit_the_zoo(monkeypatch):
    assert tasks.load("copy", calibration=3, test=4) == tasks.offline("copy", calibration=3, test=4)
    zoo, other = SimpleNamespace(id="zoo:lm-python"), SimpleNamespace(id="llama")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert tasks.suited(other, "sst2", "logiqa") == ("sst2", "logiqa")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tasks.suited(other, "sst2") == ("brackets", "keywords", "operators"), "no data set can be had"
    assert tasks.suited(zoo, "sst2", "boolq") == ("brackets", "keywords", "operators")
    assert tasks.suited(zoo, "sst2", "logiqa") == ("brackets", "keywords", "operators", "cloze", "copy")


def test_the_hub_is_read_by_split_and_what_was_calibrated_on_is_left_out(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split, revision):
        asked.append((path, config, split, revision))
        return [*sst2(8), {"sentence": "x", "label": -1}] if split == "train" else sst2(8, 4)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = tasks.load("sst2", calibration=100, test=100)
    assert asked == [("stanfordnlp/sst2", None, "train", None), ("stanfordnlp/sst2", None, "validation", None)]
    assert {item.focus for item in task.calibration} == {f"film {i}" for i in range(8)}
    assert {item.focus for item in task.test} == {f"film {i}" for i in range(8, 12)}
    assert len(tasks.load("sst2", calibration=3, test=4).calibration) == 3


def test_without_datasets_or_network_it_is_said_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub.")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    words = r"load: stanfordnlp/sst2 \(train\) cannot be had from the hub: Couldn't reach the Hub\. Check the network"
    with pytest.raises(PromptError, match=words):
        tasks.load("sst2")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match=r"Hugging Face datasets, which is not installed\. Install it with: pip"):
        tasks.load("sst2")
