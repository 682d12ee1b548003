import pytest

from sinkscope.report.text import counted, number, percent, quoted, visible


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" a\n", "␣a↵"),
        ("", "∅"),
        ("\u202e", "\\u202e"),
        ("\U000e0001", "\\U000e0001"),
        ("世<b>", "世<b>"),
        ("x" * 70, "x" * 60 + "…"),
    ],
)
def test_visible(token, shown):
    assert visible(token) == shown


def test_quoted():
    assert quoted("</script>") == "“</script>”"


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "0%"), (0.0004, "under 0.1%"), (0.0123, "1.2%"), (0.5, "50%"), (1.0, "100%"), (float("nan"), "unknown")],
)
def test_percent(share, said):
    assert percent(share) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.12345, "0.123"), (1234.5, "1,234"), (1e-5, "1.00e-05"), (float("inf"), "unknown")],
)
def test_number(value, said):
    assert number(value) == said


def test_counted():
    assert (counted(1, "prompt"), counted(2000, "token")) == ("1 prompt", "2,000 tokens")
