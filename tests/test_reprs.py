"""What a notebook shows of a model, prompts, an edit and a result: tables, and nothing that breaks the page."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import pytest

import sinkscope as sk
from sinkscope.methods.base import MethodResult
from sinkscope.roles import ROLE_COLOURS, ROLES
from sinkscope.testing import tiny


def test_a_model_shows_what_can_be_done_with_it() -> None:
    page = sk.load_model(tiny("llama"))._repr_html_()
    assert "decoder, LlamaForCausalLM, float32 on cpu" in page
    assert "<tr><th>edits</th><td>yes</td></tr>" in page


def test_an_edit_shows_its_fields_and_what_it_does() -> None:
    page = sk.MaskKeys("first", layers=range(5))._repr_html_()
    assert "<code>MaskKeys(&#x27;first&#x27;, layers=range(5))</code><br>Hide the selected keys before" in page
    assert "<tr><th>layers</th><td>range(5)</td></tr>" in page
    assert "allow_empty" not in page
    assert "allow_empty" in sk.MaskKeys([], allow_empty=True)._repr_html_()


def test_prompts_wrap_and_count_what_repeats() -> None:
    import numpy as np

    from sinkscope.prompts.show import render_html

    roles = [np.array([ROLES.index("bos"), *[ROLES.index("image")] * 256, ROLES.index("text"), ROLES.index("text")])]
    page = render_html([["<s>", *["<image>"] * 256, "<b>", "<b>"]], roles)
    assert page.count("title='image'") == 2  # the run and the legend
    assert "&lt;image&gt; × 256" in page
    assert page.count("&lt;b&gt;") == 2
    assert page.count("display:inline-block") == page.count("<span")
    assert set(ROLE_COLOURS) == set(ROLES)


@dataclass(frozen=True)
class Found(MethodResult):
    """A result."""

    reference: ClassVar[tuple[str, ...]] = ("gu2025",)
    settings: Any
    rows: int

    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"name": ["<x>"] * self.rows, "value": [0.123456789] * self.rows})

    def plot(self, ax: Any = None) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("rows", "rest"), [(3, False), (30, True)])
def test_a_result_shows_its_settings_and_the_first_rows(rows: int, rest: bool) -> None:
    result = Found("a < b", rows)
    page, text = result._repr_html_(), str(result)
    assert "a &lt; b" in page
    assert "&lt;x&gt;" in page
    assert "0.1235" in page
    assert "0.1235" in text
    assert ("10 more rows" in page) == ("10 more rows" in text) == rest
