"""The page's script is made of modules that stand alone: every name once, every import known, in order."""

import re

from sinkscope.report import scripts

TOP = re.compile(r"^(?:export )?(?:async )?(?:const|let|function) (?:(\w+)|\[([^\]]*)\])(.*)$", re.M)


def modules():
    return {name: scripts._text(f"{name}.js") for name in scripts.MODULES + scripts.LIVE_MODULES}


def test_no_name_stands_at_the_top_of_two_modules():
    seen = {}
    for module, text in modules().items():
        for one, several, _ in TOP.findall(text):
            for name in [one] if one else [n.strip() for n in several.split(",")]:
                assert name not in seen, f"{name} in {seen[name]}.js and {module}.js"
                seen[name] = module


def test_imports_name_what_an_earlier_module_exports():
    done = {}
    for module, text in modules().items():
        for names, source in re.findall(r'^import \{ (.*) \} from "\./(\w+)\.js";$', text, re.M):
            assert source in done, f"{module}.js imports from {source}.js, which comes later"
            for name in names.split(", "):
                assert name in done[source], f"{module}.js: {source}.js exports no {name}"
                assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{module}.js: {name} is not used"
        done[module] = set(re.findall(r"^export (?:async )?(?:const|function) (\w+)", text, re.M))


def test_the_script_has_neither_imports_nor_html_of_its_own():
    script = scripts.script()
    assert not re.findall(r"^(?:import|export)\b", script, re.M)
    assert "</" not in script
    assert "innerHTML" not in script
    assert "eval(" not in script


def test_a_page_that_is_a_file_asks_for_nothing():
    assert "fetch(" not in scripts.script()
    assert "fetch(" in scripts.script(live=True)
    assert "connect-src" not in scripts.policy()
    assert "connect-src 'self'" in scripts.policy(live=True)
