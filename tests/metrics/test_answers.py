"""CHAIR, POPE and overlaps on cases worked out by hand."""

import numpy as np
import pytest

from sinkscope import metrics
from sinkscope.definitions import DEFINITIONS
from sinkscope.errors import MetricError
from sinkscope.metrics.answers import spans_named

NAMES = {"dog": "dog", "dogs": "dog", "puppy": "dog", "hot dog": "hot dog", "cat": "cat", "dining table": "table"}


def test_objects_are_found_whole_and_by_the_longest_phrase():
    text = "A puppy and two dogs beside a Hot Dog on the dining table; hotdogs and cattle do not count."
    assert metrics.objects_named(text, NAMES) == ["dog", "dog", "hot dog", "table"]
    assert metrics.objects_named("Nothing.", NAMES) == []
    for names in ({}, {"": "dog"}):
        with pytest.raises(MetricError, match="objects_named"):
            metrics.objects_named(text, names)


def test_chair_counts_captions_and_mentions():
    named = [["dog", "dog", "cat"], ["table"], ["cat", "cat"], []]
    present = [{"dog", "table"}, {"table"}, {"dog"}, {"dog"}]
    found = metrics.chair(named, present)
    assert found["wrong"].values.tolist() == [1, 0, 2, 0]
    assert found["hallucinated"].values.tolist() == [1, 0, 1, 0]
    assert float(found["chair_s"]) == 0.5
    assert float(found["chair_i"]) == 3 / 6
    assert float(found["recall"]) == 2 / 5
    assert found.attrs["n"] == 4
    assert ("chair", "rohrbach2018") in DEFINITIONS
    alike = metrics.chair([["dog"], ["table"]], [["dog", "cat"], ["table"]])
    assert (float(alike["chair_s"]), float(alike["chair_i"]), float(alike["recall"])) == (0.0, 0.0, 2 / 3)


def test_chair_over_nothing_is_nan_and_strings_are_refused():
    silent = metrics.chair([[]], [{"dog"}])
    assert np.isnan(silent["chair_i"])
    assert float(silent["recall"]) == 0.0
    assert np.isnan(metrics.chair([], [])["chair_s"])
    for named, present in (([["dog"]], []), ([["dog"]], ["dog"])):
        with pytest.raises(MetricError, match="Give a list of objects for each caption and each picture"):
            metrics.chair(named, present)
    with pytest.raises(MetricError, match="chair"):
        metrics.chair(["dog"], [{"dog"}])


def test_an_answer_is_no_where_its_first_sentence_says_so():
    said = ["Yes, there is.", "No.", "There is no dog", "It is not. Yes", "Nobody knows", "Yes. There is no cat."]
    assert [metrics.says_yes(text) for text in said] == [True, False, False, False, True, True]


def test_pope_scores_by_hand():
    said = [True, True, True, False, False, False, True, False]
    truth = [True, True, False, False, True, False, True, True]
    found = metrics.pope_scores(said, truth)
    precision, recall = 3 / 4, 3 / 5
    assert found == {
        "accuracy": 5 / 8, "precision": precision, "recall": recall, "yes": 4 / 8,
        "f1": pytest.approx(2 * precision * recall / (precision + recall)),
    }  # fmt: skip
    always = metrics.pope_scores([True] * 4, [True, False, True, False])
    assert (always["recall"], always["precision"], always["yes"], always["f1"]) == (1.0, 0.5, 1.0, pytest.approx(2 / 3))
    never = metrics.pope_scores([False, False], [True, False])
    assert np.isnan(never["precision"])
    assert never["f1"] == 0.0
    for given in ([1, 0], [True]):
        with pytest.raises(MetricError, match="Give two bool arrays of one length"):
            metrics.pope_scores(given, [True, False])


def test_overlap_of_boxes():
    same, apart, half = [0, 0, 4, 2], [5, 0, 6, 2], [2, 0, 4, 2]
    np.testing.assert_allclose(metrics.box_iou([same, apart, half], same), [1.0, 0.0, 0.5])
    assert metrics.box_iou([0, 0, 2, 2], [1, 1, 3, 3]) == pytest.approx(1 / 7)
    assert np.isnan(metrics.box_iou([1, 1, 1, 1], [1, 1, 1, 1]))
    for wrong in ([0, 0, 1], [4, 0, 0, 2]):
        with pytest.raises(MetricError, match=r"box_iou\(found=\): .* left, top, right, bottom"):
            metrics.box_iou(wrong, same)


def test_overlap_of_masks_is_that_of_the_boxes_they_fill():
    one, other = (np.zeros((6, 8), dtype=bool) for _ in range(2))
    one[0:2, 0:2], other[1:3, 1:3] = True, True
    assert metrics.mask_iou(one, other) == pytest.approx(1 / 7)
    np.testing.assert_allclose(metrics.mask_iou(np.stack([one, other]), one), [1.0, 1 / 7])
    assert np.isnan(metrics.mask_iou(~np.ones((2, 2), bool), np.zeros((2, 2), bool)))
    for wrong in (one.astype(int), one[:2]):
        with pytest.raises(MetricError, match="Give bool maps of one size"):
            metrics.mask_iou(wrong, other)


def test_a_name_that_no_text_can_match_is_refused_and_line_ends_part_no_phrase():
    for name in ("Puppy", " dog", "hot  dog"):
        with pytest.raises(MetricError, match=r"objects_named.*is never found.*Write '"):
            metrics.objects_named("a puppy", {name: "dog"})
    with pytest.raises(MetricError, match="no empty one"):
        metrics.objects_named("a b", {" ": "dog"})
    assert metrics.objects_named("A hot\n dog.", NAMES) == ["hot dog"]


def test_boxes_that_are_none_are_named():
    right = [0, 0, 1, 1]
    with pytest.raises(MetricError, match=r"box_iou\(truth=\): \[2\.0, 0\.0, 1\.0, 1\.0\] is no box"):
        metrics.box_iou([right, right], [right, [2, 0, 1, 1]])
    with pytest.raises(MetricError, match=r"box_iou\(found=\): \[0\.0, 0\.0, inf, 1\.0\] is no box"):
        metrics.box_iou([0, 0, np.inf, 1], right)
    with pytest.raises(MetricError, match=r"box_iou\(found=\): shape \(3,\)"):
        metrics.box_iou([0, 0, 1], right)
    assert np.isnan(metrics.box_iou([0, 0, np.nan, 1], right))


def test_where_objects_are_named_in_the_text_itself():
    text = "A Hot\n Dog, İ dogs."
    found = spans_named(text, NAMES)
    assert [(name, text[start:end]) for name, start, end in found] == [("hot dog", "Hot\n Dog"), ("dog", "dogs")]
