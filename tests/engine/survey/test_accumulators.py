"""Sums that can be joined in any order."""

from fractions import Fraction

import numpy as np
import pytest

from sinkscope.engine.survey.accumulators import ExactSum, Histogram, Moments
from sinkscope.errors import ProbeError


def test_sums_are_exact_whatever_the_order():
    random = np.random.default_rng(0)
    values = (random.standard_normal(300) * 10.0 ** random.integers(-8, 12, 300)).astype(np.float32).astype(np.float64)
    exact = sum((Fraction(float(v)) for v in values), Fraction(0))
    found = []
    for order in (values, values[::-1], random.permutation(values)):
        total = ExactSum.zeros(())
        for value in order:
            total.add(np.asarray(value))
        found.append(Fraction(int(total.integers()[()]), 1 << 64))
    assert found[0] == found[1] == found[2]
    assert abs(found[0] - exact) < Fraction(300, 1 << 64)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e30])
def test_what_cannot_be_summed_is_refused(value):
    with pytest.raises(ProbeError, match="infinite or too large to be summed"):
        ExactSum.zeros((1,)).add(np.array([value]))


def test_the_deviation_of_close_numbers_keeps_its_digits():
    values = 1000 + np.array([0.0, 2.0**-13])  # numbers of 24 bits, as readings are: their squares are exact
    moments = Moments.zeros(())
    for value in values:
        one = np.asarray(value)
        moments.add({"count": np.asarray(1.0), "sum": one, "squares": one * one, "smallest": one, "largest": one})
    assert float(moments.finished()["std"]) == pytest.approx(2.0**-14, rel=1e-9)


def test_nothing_has_no_mean():
    found = Moments.zeros((2,)).finished()
    assert found["count"].tolist() == [0, 0]
    assert all(np.isnan(found[name]).all() for name in ("mean", "std", "min", "max"))


def test_a_bin_holds_its_upper_edge():
    edges = np.array([0.0, 0.1, 0.3, 1.0], dtype=np.float32)
    histogram = Histogram.zeros((1,), edges)
    values = np.array([0.0, 0.1, 0.3, 0.30001, 5.0], dtype=np.float32)
    histogram.add(values, np.zeros(5, dtype=np.int64))
    assert histogram.counts.tolist() == [[2, 1, 2]]
    assert histogram.quantiles([0.5])[0, 0] == pytest.approx(0.2)
