"""What a notebook shows of a model, prompts, an edit and a result: tables, and nothing that breaks the page."""

import html
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pandas as pd
import pytest
from made_reading import fake_reading

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


def test_a_probe_shows_what_it_makes() -> None:
    page = sk.ValueNorm()._repr_html_()
    assert "<code>ValueNorm(" in page
    assert "<tr><th>value_norm</th><td>prompt layer kv_head key</td>" in page


def test_findings_are_read_as_text_and_unpack_into_findings_and_sinks() -> None:
    found = sk.report.findings(fake_reading(lengths=(40,) * 6))
    told, sinks = found
    assert (found.told, found.sinks) == (told, sinks)
    assert repr(found) == "\n\n".join(f"{each}" for each in told)
    assert max(map(len, repr(found).splitlines())) <= 96
    page = found._repr_html_()
    for each in told:
        assert each.heading in repr(found)
        assert each._repr_html_() in page
        assert f"<b>{html.escape(each.heading)}</b> <small>({each.state})</small>" in page
    assert sinks is not None
    for shown in (repr(sinks), sinks._repr_html_()):
        assert sinks.kinds[0].label in html.unescape(shown)
        assert f"n = {sinks.n}" in shown
    assert list(sinks.table()["heads"]) == [kind.heads for kind in sinks.kinds]


def test_a_finding_breaks_no_page() -> None:
    finding = sk.report.Finding("<b>", "a <script> & a token", "found")
    assert "&lt;b&gt;" in finding._repr_html_()
    assert "<script>" not in finding._repr_html_()
    assert "opacity" not in finding._repr_html_()
    assert "opacity" in sk.report.Finding("Entropy", "Not measured", "missing")._repr_html_()


def test_ipython_prints_findings_and_results_as_text() -> None:
    from IPython.lib.pretty import pretty

    found = sk.report.findings(fake_reading(lengths=(40,) * 6))
    assert pretty(found) == repr(found)
    assert pretty(found.told[0]) == str(found.told[0])
    assert pretty(Found("a < b", 3)) == str(Found("a < b", 3))


def test_no_result_of_a_method_writes_out_its_arrays() -> None:
    classes = MethodResult.__subclasses__()
    assert len(classes) > 1
    assert [cls.__name__ for cls in classes if cls.__repr__ is not MethodResult.__str__] == []


def test_completion_of_the_package_offers_public_names_whatever_was_imported() -> None:
    before = dir(sk)
    importlib.import_module("sinkscope.engine.run")
    importlib.import_module("sinkscope.analysis")
    assert dir(sk) == before
    assert not {"engine", "arguments", "analysis", "annotations", "TYPE_CHECKING"} & set(before)


PUBLIC_MODULES = [name for name in dir(sk) if isinstance(getattr(sk, name), ModuleType) and name != "errors"]


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_completion_offers_what_a_module_has_of_its_own(name: str) -> None:
    module = getattr(sk, name)
    listed = {each: getattr(module, each) for each in dir(module)}
    assert listed
    assert [each for each in listed if each.startswith("_")] == []
    foreign = {"typing", "collections.abc", "pathlib", "dataclasses", "__future__", "numbers"}
    for each, value in listed.items():
        assert not callable(value) or value.__module__ not in foreign, each
        if isinstance(value, ModuleType):
            assert value.__name__.startswith(module.__name__), each
    assert set(getattr(module, "__all__", ())) <= set(listed)


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
