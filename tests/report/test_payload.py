import numpy as np
import pytest

from sinkscope.report.payload import Payload, array_of, unpack


def through(values, kind):
    payload = Payload()
    payload.add(np.arange(3), "single")
    reference = payload.add(np.asarray(values), kind)
    header, content = unpack(payload.pack({"x": reference}))
    return array_of(header["x"], content), header["x"]["type"]


def test_single_numbers_survive_with_nan_and_shape():
    values = np.array([[1.5, np.nan], [-2.0, 1e30]], np.float32)
    found, kind = through(values, "single")
    np.testing.assert_array_equal(found, values)
    assert kind == "single"


def test_half_keeps_a_thousandth_zero_and_nan():
    values = np.concatenate([[0, np.nan, 1, -1], np.random.default_rng(0).gamma(0.3, 1, 5000) + 1e-4])
    found, kind = through(values, "half")
    np.testing.assert_allclose(found, values, rtol=1.1e-3)
    assert found[0] == 0
    assert kind == "half"


def test_numbers_beyond_half_are_kept_whole():
    found, kind = through([1.0, 70_000.0, np.nan], "half")
    np.testing.assert_array_equal(found, [1.0, 70_000.0, np.nan])
    assert kind == "single"


def test_indices_survive_with_none():
    found, _ = through([[0, 4095], [np.nan, 1 << 24]], "index")
    np.testing.assert_array_equal(found, [[0, 4095], [np.nan, 1 << 24]])


def test_a_header_with_nan_is_refused_and_odd_text_is_kept():
    with pytest.raises(ValueError, match="JSON compliant"):
        Payload().pack({"x": float("nan")})
    header, _ = unpack(Payload().pack({"t": "</script>\u2028世"}))
    assert header["t"] == "</script>\u2028世"


def test_the_same_numbers_give_the_same_text():
    one, other = Payload(), Payload()
    for payload in (one, other):
        payload.add(np.arange(100.0))
    assert one.pack({}) == other.pack({})
