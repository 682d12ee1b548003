"""Values, names and dataclasses from their text form."""

from dataclasses import dataclass, field

import pytest

from sinkscope.errors import ProbeError
from sinkscope.textform import kebab, parse, value


@dataclass(frozen=True)
class NearKeys:
    keys: object = "first"
    gamma: float = 1.0


@dataclass(frozen=True)
class OneMap:
    layers: tuple
    heads: tuple = field(default=())


CLASSES = {"near-keys": NearKeys, "one-map": OneMap}


def make(text: str) -> object:
    return parse(text, CLASSES, ProbeError, "probe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3), ("-2", -2), ("0.5", 0.5), ("1e-3", 0.001), ("first", "first"), ("true", True), ("None", None),
        ("0:4", (0, 1, 2, 3)), ("1,4", (1, 4)), ("0:2,7", (0, 1, 7)), ("bos,image", ("bos", "image")),
        ("0:12:3", (0, 3, 6, 9)), ("0.5:2.0:0.5", (0.5, 1.0, 1.5, 2.0)), ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("2:1:0.5", ()), ("1:2:.5", (1.0, 1.5, 2.0)),
    ],
)  # fmt: skip
def test_values(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "expected"), [("KeyMass", "key-mass"), ("LogSumExp", "log-sum-exp"), ("Entropy", "entropy")]
)
def test_kebab(name: str, expected: str) -> None:
    assert kebab(name) == expected


def test_parse() -> None:
    assert make("near-keys") == NearKeys()
    assert make("NearKeys gamma=0.2 keys=image,bos") == NearKeys(("image", "bos"), 0.2)
    assert make("one-map layers=3 heads=0:2") == OneMap((3,), (0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("far-keys", "probe 'far-keys': there is no such probe. Use one of: near-keys, one-map."),
        ("near-keys gama=2", "'gama=2' is no field of it. near-keys takes keys, gamma; write field=value."),
        ("near-keys gamma", "'gamma' is no field of it"),
        ("near-keys gamma=", "'gamma=' is no field of it"),
        ("one-map heads=1", "layers must be given, such as layers=0,1. one-map takes layers, heads."),
        ("", "probe '': it is empty or a quote is not closed."),
        ("near-keys keys='a", "it is empty or a quote is not closed."),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ProbeError) as caught:
        make(text)
    assert message in str(caught.value)
