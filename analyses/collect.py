"""Make analyses/README.md and the gallery of the documentation from what the analyses found; no number is typed.

Each script leaves ``claims.json`` and its figures in a folder of its own. This one copies them into ``docs/gallery/``
(figures made smaller), and writes the table of all claims and one gallery page per paper from those copies. So a single
script that ran again replaces its own part alone, and ``--check`` needs no analysis to run.

    python analyses/collect.py                  # take in out/analyses, write the pages
    python analyses/collect.py --check          # say whether the pages are those of the stored claims
"""

from __future__ import annotations

import argparse
import ast
import html
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from sinkscope.files import replacing
from sinkscope.references import REFERENCES

ROOT = Path(__file__).resolve().parents[1]
WIDTH, COLOURS, BYTES, BANDS = 1000, 255, 300_000, 5
"""A figure's most pixels across, colours of its palette, bytes, and levels of 255 by which a shade may be off."""
VERDICTS = ("agrees", "differs", "can't be seen here")
TABLE = (
    "| figure | claim | paper | model | found here | |",
    "|---|---|---|---|---|---|",
)
COLUMNS = ("smollm2-135m", "gemma3-270m", "zoo:lm-python")
"""Models with a column of their own in the table of claims; what was found on others stands together in the last."""

README_HEAD = """# Analyses

<!-- made by analyses/collect.py; do not edit -->

The papers' figures and claims, one script each. `make figures` runs those that are missing or changed. To ask your own
model, change one argument:

    python analyses/FOLDER/NAME.py --model path/or/hub-id --output out/mine

{counted} A cell is what was found on that model, with interval and n where it is a number; the papers' pages in the
[gallery](../docs/gallery.md) say it at length, with the figures. These models are small, which is one reason why a
claim about a large one may differ; a constructed model shows that the instrument finds what is there, nothing about
trained ones. Rows without a paper are controls and checks of this project and are not counted.

{timed}
"""
GALLERY_HEAD = """# Gallery

<!-- made by analyses/collect.py; do not edit -->

Figures of the papers, redrawn by one script each on small models, pretrained or of the zoo. {counted} The page of a
paper says what it claims, what was found here, and the command that draws the figure; give that command `--model` to
ask your own. The models here are small, some of them constructed: a picture says something about the model in its
caption, not about large ones. [Beside the papers](side-by-side.md) says of twelve what the paper's panel shows.
"""


class CollectError(Exception):
    """The output folder does not hold what the analyses leave."""


@dataclass(frozen=True)
class Place:
    """Where the parts of a checkout are; tests put another root."""

    root: Path = ROOT

    @property
    def scripts(self) -> Path:
        """Folder of the analyses."""
        return self.root / "analyses"

    @property
    def gallery(self) -> Path:
        """Folder of the stored claims and figures, and of the pages of single papers."""
        return self.root / "docs" / "gallery"


def read(path: Path, place: Place) -> dict[str, Any]:
    """Read one ``claims.json`` and check that it is whole, of a script that exists, and not of a quick run.

    Raises:
        CollectError: it is not; the message says what to run.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    script = place.scripts / data["script"]
    again = f"Run python analyses/{data['script']} again."
    if not script.is_file():
        raise CollectError(f"{path}: it comes from analyses/{data['script']}, which does not exist. Delete the folder.")
    if data["quick"]:
        raise CollectError(f"{path}: it was made with --quick, whose numbers are no findings. {again}")
    absent = [figure["file"] for figure in data["figures"] if not (path.parent / figure["file"]).is_file()]
    if absent:
        raise CollectError(f"{path}: its figures {absent} are not there. {again}")
    return data


def scripts(place: Place) -> list[str]:
    """Give the analysis scripts as ``folder/name.py``, in order: those that are built on :class:`Study`."""
    found = sorted(place.scripts.glob("*/[a-z]*.py"))
    return [f"{path.parent.name}/{path.name}" for path in found if "Study(" in path.read_text(encoding="utf-8")]


def take_in(output: Path, place: Place) -> list[str]:
    """Copy claims and figures of every analysis in ``output`` into the gallery, and give the scripts' names.

    All are read before anything is written; the gallery's folder changes as a whole. What belongs to a script that no
    longer exists goes.
    """
    fresh = {path.parent: read(path, place) for path in sorted(output.glob("*/*/claims.json"))}
    place.gallery.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.gallery.parent, prefix=".gallery-") as name:
        made = Path(name) / "made"
        for script in scripts(place):
            stored = place.gallery / Path(script).with_suffix("")
            if (stored / "claims.json").is_file():
                shutil.copytree(stored, made / Path(script).with_suffix(""))
        for folder, data in fresh.items():
            target = made / Path(data["script"]).with_suffix("")
            kept = {key: value for key, value in data.items() if key != "seconds"} | cost(data, target / "claims.json")
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            (target / "claims.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            for figure in data["figures"]:
                shrink(folder / figure["file"], target / figure["file"])
        made.mkdir(exist_ok=True)
        os.replace(place.gallery, Path(name) / "old")
        os.replace(made, place.gallery)
    return [data["script"] for data in fresh.values()]


def cost(data: dict[str, Any], stored: Path) -> dict[str, float]:
    """Give the processor time of a script; of the same code the longest, as a run that found its readings is short."""
    if "processor_seconds" not in data:
        return {}
    before = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    same = before.get("code") == data.get("code")
    return {"processor_seconds": max(data["processor_seconds"], before.get("processor_seconds", 0) if same else 0)}


def timed(everything: list[dict[str, Any]]) -> str:
    """Say what the scripts cost together, as far as their times are stored."""
    if not (times := [data["processor_seconds"] for data in everything if "processor_seconds" in data]):
        return ""
    return (
        f"{len(times)} of {len(everything)} scripts have a time stored: {sum(times) / 60:.0f} minutes of processor "
        f"time together, {sum(times) / 120:.0f} on two cores, one thread each; readings that scripts share count once."
    )


def shrink(source: Path, target: Path) -> None:
    """Write a figure at most ``WIDTH`` pixels wide and under ``BYTES``: with a palette if that shows no bands."""
    with Image.open(source) as image:
        picture, width = image.convert("RGB"), min(WIDTH, image.width)
    while True:
        small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        # Dithering would tint the white ground, as Pillow looks colours up in coarse steps.
        flat = small.quantize(COLOURS, kmeans=1)
        for kept in (flat,) if banding(small, flat) <= BANDS else (small, flat):
            kept.save(target, optimize=True)
            if target.stat().st_size < BYTES:
                return
        width = round(width * 0.85)  # pictures of noise do not compress


def banding(one: Image.Image, other: Image.Image) -> int:
    """Give the largest difference of shade, in levels of 255, between two pictures seen in squares of 16 pixels."""
    squares = (max(1, one.width // 16), max(1, one.height // 16))
    parts = [each.convert("RGB").resize(squares, Image.Resampling.BOX) for each in (one, other)]
    return max(int(high) for _, high in ImageChops.difference(*parts).getextrema())  # type: ignore[misc]


def pages(place: Place) -> dict[Path, str]:
    """Give every generated page by its path, from the stored claims alone."""
    stored = [place.gallery / Path(script).with_suffix("") / "claims.json" for script in scripts(place)]
    done = [json.loads(path.read_text(encoding="utf-8")) for path in stored if path.is_file()]
    papers: dict[str, list[dict[str, Any]]] = {}
    for data in sorted(done, key=lambda data: (data["paper"], data["script"])):
        papers.setdefault(data["paper"], []).append(data)
    found = {place.scripts / "README.md": table(papers, place), place.gallery.with_suffix(".md"): index(papers)}
    return found | {place.gallery / f"{key}.md": paper_page(key, group) for key, group in papers.items()}


def table(papers: dict[str, list[dict[str, Any]]], place: Place) -> str:
    """Give analyses/README.md: how to run a script, and each claim beside what was found on each model."""
    everything = [claim for group in papers.values() for data in group for claim in rows(data).values()]
    told = timed([data for group in papers.values() for data in group])
    lines = [README_HEAD.format(counted=counted(everything), timed=told)]
    for key, group in papers.items():
        found = [(data, claim) for data in group for claim in rows(data).values()]
        models = [model for model in COLUMNS if any(model_of(one, d) == model for d, claim in found for one in claim)]
        columns = ["claim", "paper", *(f"`{model}`" for model in models), "other models"]
        said = counted([claim for data in group for claim in rows(data).values()])
        lines += [f"## {heading(key)}\n", f"{said}\n", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [matrix_row(claim, data, models) for data, claim in found]
        lines.append("")
    seen = {data["script"] for group in papers.values() for data in group}
    rest = [path for path in sorted(place.scripts.glob("*/[a-z]*.py")) if f"{path.parent.name}/{path.name}" not in seen]
    runnable = [path for path in rest if "__main__" in path.read_text(encoding="utf-8")]
    if runnable:
        lines += [
            "## Further scripts\n",
            "They print what they find; `make figures` collects it here where they state claims.\n",
        ]
        lines += ["| script | question |", "|---|---|"]
        lines += [f"| [{p.parent.name}/{p.stem}]({p.parent.name}/{p.name}) | {cell(first_line(p))} |" for p in runnable]
        lines.append("")
    return "\n".join(lines)


def rows(data: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Give the claims of a script: one list per claim, with what was found on each model."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for claim in data["claims"]:
        found.setdefault((claim["figure"], claim["claim"]), []).append(claim)
    return found


def model_of(claim: dict[str, Any], data: dict[str, Any]) -> str:
    """Name the model that a claim is about."""
    return claim.get("model") or ", ".join(data["models"])


def matrix_row(claim: list[dict[str, Any]], data: dict[str, Any], models: list[str]) -> str:
    """Give one claim as a row of the table: what was found on each of ``models``, then on all others."""
    first = claim[0]
    link = f"[{Path(data['script']).stem}]({data['script']}), {cell(first['figure'])}: {cell(first['claim'])}"
    cells = [" <br> ".join(found(one) for one in claim if model_of(one, data) == model) for model in models]
    left_out = data.get("left_out", {})
    cells = [
        text or (f"left out: {cell(left_out[model].removeprefix(f'{model}: '))}" if model in left_out else "")
        for text, model in zip(cells, models, strict=True)
    ]
    rest = [f"`{model_of(one, data)}`: {found(one)}" for one in claim if model_of(one, data) not in models]
    return f"| {' | '.join([link, cell(first['paper']), *cells, ' <br> '.join(rest)])} |"


def found(claim: dict[str, Any]) -> str:
    """Give one cell: the verdict, and the number behind it or why there is none."""
    if claim["agrees"] is None:
        return f"{marked(claim)}: {cell(claim.get('reason') or claim['found'])}"
    return f"{marked(claim)}: {cell(claim.get('number') or claim['found'])}"


def marked(claim: dict[str, Any]) -> str:
    """Give the verdict, bold unless the claim is borne out."""
    return claim["verdict"] if claim["agrees"] else f"**{claim['verdict']}**"


def index(papers: dict[str, list[dict[str, Any]]]) -> str:
    """Give docs/gallery.md: one card per analysis, with its first figure."""
    everything = [claim for group in papers.values() for data in group for claim in rows(data).values()]
    lines = [GALLERY_HEAD.format(counted=counted(everything))]
    for key, group in papers.items():
        lines += [f"## [{heading(key)}](gallery/{key}.md)\n", ":::::{grid} 1 2 3 3", ":gutter: 2\n"]
        for data in group:
            lines += ["::::{grid-item-card}", f":link: {anchor(data)}", ":link-type: ref", ":class-card: gallery-card"]
            if data["figures"]:
                lines.append(f":img-top: gallery/{Path(data['script']).with_suffix('')}/{data['figures'][0]['file']}")
            verdicts = [claim["verdict"] for claim in data["claims"]]
            told = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts)
            lines += ["", f"{cell(data['title'])}", ":::{card-footer}", told or "no claim", ":::", "::::\n"]
        lines.append(":::::\n")
    hidden = ["```{toctree}", ":hidden:\n", *(f"gallery/{key}" for key in papers), "```"]
    return "\n".join([*lines, *(hidden if papers else []), ""])


def paper_page(key: str, group: list[dict[str, Any]]) -> str:
    """Give the page of one paper: for each script its question, its figures and its claims."""
    reference = REFERENCES[key]
    source = f", [arXiv {reference.arxiv}](https://arxiv.org/abs/{reference.arxiv})" if reference.arxiv else ""
    lines = [f"# {heading(key)}\n", "<!-- made by analyses/collect.py; do not edit -->\n"]
    lines += [f"{cell(reference.title)}{source}. Cited as `{key}`.\n"]
    for data in group:
        lines += [f"({anchor(data)})=", f"## {cell(short(data['title']))}\n", f"    python analyses/{data['script']}\n"]
        for figure in data["figures"]:
            image = f"{Path(data['script']).with_suffix('')}/{figure['file']}"
            says = cell(figure["says"]).replace("[", "(").replace("]", ")")
            lines += [f"![{says}]({image})\n", *([f"*{says}*\n"] if says else []), *how_made(figure["file"], data)]
        if data["claims"]:
            lines += [*TABLE, *(row(claim, model_of(claim, data)) for claim in data["claims"]), ""]
        about = data["description"].partition("\n")[2].strip()
        if about:
            lines += [cell(about) + "\n"]
        lines.append(f"Models: {', '.join(f'`{model}`' for model in data['models'])}.\n")
    return "\n".join(lines)


def how_made(file: str, data: dict[str, Any]) -> list[str]:
    """Give the box under a figure that says which command drew it, of which model, and at what cost."""
    model = Path(file).stem.partition("--")[2]
    named = f" --model {model.replace('zoo-', 'zoo:', 1)}" if model else ""
    seconds = data.get("processor_seconds")
    cost = f" All figures of the script together took {float(seconds):.0f} s of processor time." if seconds else ""
    return [
        ":::{dropdown} How this figure was made\n",
        f"    python analyses/{data['script']}{named}\n",
        f"Readings and claims are written beside it; what was measured, against which control, stands below.{cost}\n",
        ":::\n",
    ]


def anchor(data: dict[str, Any]) -> str:
    """Name the place of one analysis on its paper's page."""
    return data["script"].removesuffix(".py").replace("/", "-").replace("_", "-")


def short(title: str) -> str:
    """Give the first sentence of a title, or what stands before its colon: a heading has little room."""
    found = re.match(r"[^:?;(]{12,}\??", title)
    return (found.group(0) if found else title).strip().rstrip(".")


def row(claim: dict[str, Any], model: str) -> str:
    """Give what was found of one claim on one model as a row of the paper's page."""
    said = claim["found"]
    if claim.get("reason") and claim["reason"] != said:
        said += f" ({claim['reason']})"
    middle = (claim["figure"], claim["claim"], claim["paper"])
    return f"| {' | '.join(map(cell, middle))} | `{model}` | {cell(said)} | {marked(claim)} |"


def counted(claims: list[list[dict[str, Any]]]) -> str:
    """Say how many of the papers' claims agree or differ on every model that shows them, or cannot be seen on any."""
    if not claims:
        return "No claim is stored yet: run `make figures`."
    verdicts = [{one["agrees"] for one in claim if one["agrees"] is not None} for claim in claims if claim[0]["paper"]]
    both, agrees, differs, unseen = (verdicts.count(kind) for kind in ({True, False}, {True}, {False}, set()))
    return (
        f"{len(verdicts)} claims of the papers: {agrees} borne out on every model that shows them, {both} on some, "
        f"{differs} on none, {unseen} can't be seen here."
    )


def heading(key: str) -> str:
    """Name a paper: first author, year and the key words of its title."""
    reference = REFERENCES[key]
    authors = reference.authors.split(" and ")
    name = authors[0].split(" ")[-1].strip("{}") + (" et al." if len(authors) > 1 else "")
    year = str(reference.year) if reference.year else ""
    title = (reference.title or reference.note).split(":")[0]
    if not reference.authors:
        return cell(f"{title}{f' ({year})' if year else ''}")
    return cell(f"{' '.join(part for part in (name, year) if part)}: {title}")


def cell(text: str) -> str:
    """Make running text safe in a Markdown table: one line, no markup read from it but code between backticks."""
    parts = " ".join(text.replace("``", "`").split()).split("`")
    if len(parts) % 2 == 0:  # a backtick without a partner
        parts = ["'".join(parts)]
    for i, part in enumerate(parts):
        if i % 2 == 0:
            part = html.escape(part, quote=False).replace("\\", "\\\\").replace("*", "\\*")
        parts[i] = part.replace("|", "\\|")
    return "`".join(parts)


def first_line(path: Path) -> str:
    """Give the first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem).splitlines()[0]


def main(arguments: list[str] | None = None, place: Place | None = None) -> int:
    """Command line; 0 when all is written, or nothing differs under ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/analyses"), help="where the analyses left their files")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    given = parser.parse_args(arguments)
    place = place or Place()
    if given.check:
        stale = [p for p, text in pages(place).items() if not p.exists() or p.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"{path.relative_to(place.root)} is out of date. Run python analyses/collect.py.", file=sys.stderr)
        return 1 if stale else 0
    try:
        taken = take_in(given.output, place)
    except CollectError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in pages(place).items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{len(taken)} analyses taken in from {given.output}; {len(pages(place))} pages written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
