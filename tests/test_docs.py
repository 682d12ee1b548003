"""The pages that are made: the API from the package, gallery and table of claims from what the analyses left."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sinkscope

ROOT = Path(__file__).parents[1]


def script(path: str) -> ModuleType:
    """Load a file outside the package as a module."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


apipages, collect = script("docs/apipages.py"), script("analyses/collect.py")


def test_every_public_name_is_on_one_page_and_is_described() -> None:
    names = [name for page in apipages.PAGES for name in apipages.public(page)]
    paths = [name.path for name in names]
    assert len(paths) == len(set(paths)) > 150
    assert [name.path for name in names if not (name.value.__doc__ or "").strip()] == []
    top = {f"sinkscope.{name}" for name in dir(sinkscope) if not name.startswith("_")}
    modules = {path for path in top if isinstance(getattr(sinkscope, path.removeprefix("sinkscope.")), ModuleType)}
    errors = {f"sinkscope.{name}" for name in dir(sinkscope.errors)}
    imported = {"sinkscope.annotations", "sinkscope.import_module", "sinkscope.Any", "sinkscope.TYPE_CHECKING"}
    assert top - modules - errors - imported <= set(paths)
    contract = {
        "load_model", "Prompts", "Model", "run", "sweep", "grid", "save", "open", "cite", "KeyMass", "TokenLoss",
        "ScaleKeys", "Redistribute", "SwapNormaliser", "metrics.sink_rate", "plot.sink_map", "testing.planted_sink",
        "methods.profile_heads", "methods.var.var", "report.write_report", "zoo.entries", "training.SinkCallback",
    }  # fmt: skip
    assert {f"sinkscope.{name}" for name in contract} <= set(paths)


def test_pages_of_the_api_are_linked_and_headed_by_the_modules_docstring(tmp_path: Path) -> None:
    (tmp_path / "sinkscope.gone.rst").write_text("a name that is gone")
    (tmp_path / "sinkscope.run.rst").write_text("a name that is there")
    apipages.write(tmp_path)
    assert {path.name for path in tmp_path.glob("*.rst")} == {"sinkscope.run.rst"}
    index = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    for page in apipages.PAGES:
        assert f"generated/{page}" in index
    metrics = (tmp_path / "metrics.md").read_text(encoding="utf-8")
    assert "## Where the sinks are\n\nThe share of heads with a sink, and which tokens are sinks.\n" in metrics
    assert "   ~sinkscope.metrics.sink_rate\n" in metrics
    before = (tmp_path / "metrics.md").stat().st_mtime_ns
    apipages.write(tmp_path)
    assert (tmp_path / "metrics.md").stat().st_mtime_ns == before


CLAIM = {
    "figure": "Fig. 2", "claim": "Sinks at <s> | first", "paper": "most", "found": "21% of 24 heads; more words",
    "agrees": True, "verdict": "agrees", "model": "zoo:lm-python", "number": "21% of 24 heads", "reason": "",
}  # fmt: skip

DIFFERS = {"agrees": False, "verdict": "differs", "number": "", "found": "other", "model": "b"}


def analysis(root: Path, name: str, **changes: Any) -> Path:
    """A script and what it left; gives the folder of what it left."""
    source = root / "analyses" / "gu2025" / f"{name}.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text('"""Where the sinks are."""\nwith Study(__doc__):\n    pass\n')
    folder = root / "out" / "gu2025" / name
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1400, 700), "white").save(folder / "map.png")
    data = {
        "script": f"gu2025/{name}.py", "paper": "gu2025", "title": "Where the sinks are.",
        "description": "Where the sinks are.\n\nCost: ``seconds`` for <s>.", "models": ["zoo:lm-python"],
        "quick": False, "seconds": 1.5, "processor_seconds": 90.0, "code": "a",
        "figures": [{"file": "map.png", "says": "n = 3 [a]"}],
        "claims": [CLAIM, CLAIM | DIFFERS],
    }  # fmt: skip
    (folder / "claims.json").write_text(json.dumps(data | changes))
    return folder


def collected(root: Path, *options: str) -> int:
    (root / "docs").mkdir(exist_ok=True)
    return collect.main(["--output", str(root / "out"), *options], collect.Place(root))


def photograph(seed: int = 0, noise: float = 6.0, height: int = 330) -> Image.Image:
    """A figure with two overlays on a picture: soft shades of many hues with some noise, on a white ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : height - 60, 0:400] / 400
    hues = np.stack([np.cos(5 * x + 2 * y), np.cos(3 * x - 6 * y + 1), np.cos(7 * y + 2 * x + 4)], -1)
    shades = np.clip(128 + 110 * hues + rng.normal(0, noise, hues.shape), 0, 255)
    whole = np.full((height, 900, 3), 255, dtype=np.uint8)
    shades[20:44, 20:44] = [[230, 20, 20]]  # few pixels of a colour, as of a ring around a sink
    whole[30:-30, 30:430] = whole[30:-30, 470:870] = shades.astype(np.uint8)
    return Image.fromarray(whole)


def test_a_picture_in_the_gallery_has_no_bands_and_a_flat_figure_keeps_its_palette(tmp_path: Path) -> None:
    source, target = tmp_path / "figure.png", tmp_path / "small.png"
    picture = photograph()
    picture.save(source)
    median_cut = picture.quantize(255, dither=Image.Dither.NONE)  # as it was done before
    assert collect.banding(picture, median_cut) > collect.BANDS
    collect.shrink(source, target)
    with Image.open(target) as small:
        assert (small.mode, small.size) == ("RGB", picture.size)
        assert collect.banding(picture, small) == 0
    assert target.stat().st_size < collect.BYTES
    Image.fromarray(np.repeat(np.linspace(0, 250, 200, dtype=np.uint8)[:, None, None], 300, 1).repeat(3, 2)).save(
        source
    )
    collect.shrink(source, target)
    with Image.open(source) as flat, Image.open(target) as small:
        assert small.mode == "P"
        assert collect.banding(flat, small) <= collect.BANDS


def test_noise_that_is_too_large_in_whole_colours_gets_a_palette_near_its_shades(tmp_path: Path) -> None:
    source, target = tmp_path / "figure.png", tmp_path / "small.png"
    picture = photograph(noise=20.0, height=460)
    picture.save(source)
    assert source.stat().st_size > collect.BYTES
    collect.shrink(source, target)
    with Image.open(target) as small:
        assert (small.mode, target.stat().st_size < collect.BYTES) == ("P", True)
        same = picture.resize(small.size, Image.Resampling.LANCZOS)
        old = collect.banding(same, same.quantize(255, dither=Image.Dither.NONE))
        assert collect.banding(same, small) < 0.5 * old


def test_claims_become_the_table_the_gallery_and_the_papers_page(tmp_path: Path) -> None:
    analysis(tmp_path, "sink_map")
    assert collected(tmp_path) == 0
    table = (tmp_path / "analyses" / "README.md").read_text()
    assert "| claim | paper | `zoo:lm-python` | other models |\n" in table
    row = "| [sink_map](gu2025/sink_map.py), Fig. 2: Sinks at &lt;s&gt; \\| first | most | agrees: 21% of 24 heads | "
    assert f"{row}`b`: **differs**: other |\n" in table
    paper = table.partition("## Gu et al. 2025")[2].splitlines()[2]
    assert paper == "1 claims of the papers: 0 borne out on every model that shows them, 1 on some, 0 on none, " + (
        "0 can't be seen here."
    )
    assert (
        "1 claims of the papers: 0 borne out on every model that shows them, 1 on some, 0 on none, "
        "0 can't be seen here."
    ) in table
    gallery = (tmp_path / "docs" / "gallery.md").read_text()
    assert (
        ":img-top: gallery/gu2025/sink_map/map.png\n\nWhere the sinks are.\n:::{card-footer}\n1 agrees, 1 differs\n"
        in gallery
    )
    page = (tmp_path / "docs" / "gallery" / "gu2025.md").read_text()
    about = "| Fig. 2 | Sinks at &lt;s&gt; \\| first | most |"
    assert f"\n{about} `zoo:lm-python` | 21% of 24 heads; more words | agrees |\n" in page
    assert f"\n{about} `b` | other | **differs** |\n" in page
    assert "![n = 3 (a)](gu2025/sink_map/map.png)\n\n*n = 3 (a)*\n" in page
    assert ":::{dropdown} How this figure was made\n\n    python analyses/gu2025/sink_map.py\n" in page
    assert "took 90 s of processor time" in page
    made = collect.how_made("sink_map--zoo-lm-python.png", {"script": "gu2025/sink_map.py"})
    assert "    python analyses/gu2025/sink_map.py --model zoo:lm-python\n" in made
    assert "Cost: `seconds` for &lt;s&gt;." in page
    with Image.open(tmp_path / "docs" / "gallery" / "gu2025" / "sink_map" / "map.png") as image:
        assert image.size == (1000, 500)
    stored = json.loads((tmp_path / "docs" / "gallery" / "gu2025" / "sink_map" / "claims.json").read_text())
    assert "seconds" not in stored  # it is the machine's, whatever else it does
    assert stored["processor_seconds"] == 90


def test_the_table_says_what_the_scripts_cost_and_a_run_that_found_its_readings_does_not_count(tmp_path: Path) -> None:
    analysis(tmp_path, "a")
    analysis(tmp_path, "b", processor_seconds=270)
    collected(tmp_path)
    analysis(tmp_path, "b", processor_seconds=1.0)
    analysis(tmp_path, "a", processor_seconds=30.0, code="other")
    collected(tmp_path)
    table = (tmp_path / "analyses" / "README.md").read_text()
    assert "2 of 2 scripts have a time stored: 5 minutes of processor time together, 2 on two cores" in table


def test_the_table_counts_claims_not_cells_and_none_of_this_projects_own(tmp_path: Path) -> None:
    unseen = CLAIM | {"agrees": None, "verdict": "can't be seen here", "reason": "3 pairs", "number": "0.7"}
    claims = [
        CLAIM, CLAIM | {"model": "smollm2-135m"}, CLAIM | {"claim": "b", "agrees": False, "verdict": "differs"},
        unseen | {"claim": "c"}, CLAIM | {"claim": "control", "paper": ""},
    ]  # fmt: skip
    analysis(tmp_path, "sink_map", claims=claims, left_out={"smollm2-135m": "smollm2-135m: it is not here."})
    assert collected(tmp_path) == 0
    table = (tmp_path / "analyses" / "README.md").read_text()
    assert (
        "3 claims of the papers: 1 borne out on every model that shows them, 0 on some, 1 on none, "
        "1 can't be seen here."
    ) in table
    assert "| claim | paper | `smollm2-135m` | `zoo:lm-python` | other models |\n" in table
    assert "| most | left out: it is not here. | **can't be seen here**: 3 pairs |  |\n" in table


TEXT_PAPERS = (
    "ahn2025", "algorithms2026", "anand2026", "chen2026", "gu2025", "guo2024", "han2025", "moh", "qiu2025", "sun2024",
    "wong2025", "wu2024", "xue2025", "yu2024", "zhang2023", "zhang2026",
)  # fmt: skip
"""Papers on language models, and those whose scripts run on one."""


def stored() -> list[dict]:
    """What the scripts of the text papers left in the gallery."""
    every = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "docs/gallery").glob("*/*/claims.json"))]
    return [data for data in every if data["paper"] in TEXT_PAPERS]


def test_few_claims_of_the_text_papers_cannot_be_seen_and_each_says_why() -> None:
    unseen = []
    for data in stored():
        for claim in collect.rows(data).values():
            assert all(one["reason"] for one in claim if one["agrees"] is None), claim[0]["claim"]
            if claim[0]["paper"] and all(one["agrees"] is None for one in claim):
                unseen.append((data["script"], claim[0]["claim"]))
    assert len(unseen) <= 20, unseen


def test_no_claim_holds_by_arithmetic() -> None:
    """That a higher threshold counts fewer heads was stored as a finding that agrees."""
    names = [claim["claim"].lower() for data in stored() for claim in data["claims"]]
    assert len(names) > 100
    assert [name for name in names if "threshold" in name and ("fewer" in name or "higher" in name)] == []


def test_what_is_said_of_a_pretrained_model_names_no_token_that_it_lacks() -> None:
    """Claims spoke of <s>, and of a model trained with it in front, whatever model they were about."""
    for data in stored():
        for claim in data["claims"]:
            if claim["model"] in ("smollm2-135m", "gemma3-270m", "all-MiniLM-L6-v2"):
                told = f"{claim['claim']} {claim['found']}"
                assert "<s>" not in told, f"{data['script']}, {claim['model']}: {told}"
                assert "trained with its first token" not in told


def test_one_script_that_ran_again_replaces_its_own_part_and_a_removed_one_goes(tmp_path: Path) -> None:
    first, second = analysis(tmp_path, "first"), analysis(tmp_path, "second")
    assert collected(tmp_path) == 0
    (first / "claims.json").unlink()
    analysis(tmp_path, "second", claims=[CLAIM | {"number": "anew"}])
    assert collected(tmp_path) == 0
    table = (tmp_path / "analyses" / "README.md").read_text()
    assert "[first](gu2025/first.py)" in table
    assert "anew" in table
    (tmp_path / "analyses" / "gu2025" / "second.py").unlink()
    (second / "claims.json").unlink()
    assert collected(tmp_path) == 0
    assert "second" not in (tmp_path / "analyses" / "README.md").read_text()
    assert not (tmp_path / "docs" / "gallery" / "gu2025" / "second").exists()


def test_check_says_which_page_is_out_of_date_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis(tmp_path, "sink_map")
    assert collected(tmp_path) == 0
    assert collected(tmp_path, "--check") == 0
    page = tmp_path / "analyses" / "README.md"
    page.write_text("by hand")
    assert collected(tmp_path, "--check") == 1
    assert page.read_text() == "by hand"
    assert "analyses/README.md is out of date. Run python analyses/collect.py." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quick": True}, "it was made with --quick, whose numbers are no findings. Run python analyses/gu2025/bad.py"),
        (
            {"script": "gu2025/gone.py"},
            "it comes from analyses/gu2025/gone.py, which does not exist. Delete the folder",
        ),
        (
            {"figures": [{"file": "lost.png", "says": ""}]},
            "its figures ['lost.png'] are not there. Run python analyses",
        ),
    ],
)
def test_what_is_no_finding_is_refused_and_nothing_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    analysis(tmp_path, "good")
    assert collected(tmp_path) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "docs").rglob("*")}
    analysis(tmp_path, "bad", **changes)
    assert collected(tmp_path) == 1
    assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "docs").rglob("*")} == before


def test_the_stored_claims_stand_in_the_table_and_on_the_papers_page() -> None:
    table = (ROOT / "analyses" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs" / "gallery").glob("*/*/claims.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        page = (ROOT / "docs" / "gallery" / f"{data['paper']}.md").read_text(encoding="utf-8")
        for claim in data["claims"]:
            assert collect.found(claim) in table
            assert collect.row(claim, collect.model_of(claim, data)) in page
        for figure in data["figures"]:
            assert (path.parent / figure["file"]).stat().st_size < 300_000


ON_TEXT = {"gu2025", "guo2024", "han2025", "sun2024", "wong2025", "wu2024", "yu2024", "zhang2023"}
"""Papers whose claims are asked of the two pretrained language models and the zoo's."""


def test_at_most_twenty_claims_of_the_papers_on_text_are_left_unseen_and_each_says_why() -> None:
    claims = [
        claim
        for path in sorted((ROOT / "docs" / "gallery").glob("*/*/claims.json"))
        if (data := json.loads(path.read_text(encoding="utf-8")))["paper"] in ON_TEXT
        for claim in collect.rows(data).values()
        if claim[0]["paper"]
    ]
    unseen = [claim for claim in claims if all(one["agrees"] is None for one in claim)]
    assert len(claims) > 80
    assert len(unseen) <= 20
    assert all(one["reason"] for claim in unseen for one in claim)


def test_every_figure_of_the_core_papers_has_a_script_or_a_reason_and_every_script_is_named() -> None:
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8").partition("## Figures of the six core papers")[2]
    named = set(re.findall(r"`([a-z0-9_]+/\w+\.py)`", page))
    scripts = {
        f"{path.parent.name}/{path.name}"
        for path in (ROOT / "analyses").glob("*/[a-z]*.py")
        if "Study(" in path.read_text(encoding="utf-8")
    }
    assert {name for name in named if not name.startswith("recipes/")} == scripts
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [row for row in rows if row[0].strip() != "figure"]
    assert len(rows) > 45
    for figure, script, differences in rows:
        assert figure.strip()
        assert differences.strip()
        assert "`" in script or script.strip() == "none"


def test_the_three_studies_run_as_they_stand_in_at_most_ten_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(codes) == 3
    assert all(len([line for line in code.splitlines() if line.strip()]) <= 10 for code in codes)
    monkeypatch.chdir(tmp_path)
    # Smaller models and fewer texts; every call is the page's.
    for old, new in (
        ('"smollm2-135m"', '"zoo:lm-python"'), ("corpora.texts()", "corpora.snippets()[:6]"), ("[2, 3, 4]", "[1]"),
        ("[13, 14, 15]", "[3]"), ("[26, 27, 28]", "[5]"),
        ("(10, 11, 12) for head in range(9)", "(5,) for head in range(4)"),
        ('"zoo:vlm-smol"', '"zoo:vlm-shapes"'), ("(model, 12)", "(model, 4)"),
    ):  # fmt: skip
        assert old in page
        codes = [code.replace(old, new) for code in codes]
    for code in codes:
        exec(compile(code, "studies.md", "exec"), {})
    said = capsys.readouterr().out
    assert all(name in said for name in ("early", "middle", "late"))
    assert re.search(r"(uni|bi)modal", said)
    assert {path.name for path in tmp_path.iterdir()} == {"masked.png", "gamma.png", "split.png"}


def test_twelve_figures_stand_beside_what_the_paper_shows():
    page = (ROOT / "docs" / "side-by-side.md").read_text(encoding="utf-8")
    parts = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert len(parts) == 12
    for part in parts:
        assert "**The paper:**" in part
        assert "**Here:**" in part
        assert "*Different:*" in part
        (image,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", part)
        assert (ROOT / "docs" / image).is_file(), image
