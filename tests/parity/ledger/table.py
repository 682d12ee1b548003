"""The page that the ledger writes: counts on top, then every entry by the auto class that it was found in."""

import re
from collections import Counter
from pathlib import Path

import torch
import transformers

from parity.ledger.entries import MAPPINGS

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
ENDS = ("exact", "refused", "wrong", "crash", "not built")
LONGEST, LONGEST_REFUSAL = 170, 600
NO_BRIDGE = "TransformerLens cannot serve it either: TransformerLens has no adapter for this architecture."


def counts(rows):
    """How many entries ended which way, as lines of text."""
    ended = Counter(row["end"] for row in rows)
    ran = len(rows) - ended["not built"]
    share = 100 * (ended["exact"] + ended["refused"]) / max(1, ran)
    worst = max((row["worst"] for row in rows if row["end"] == "exact"), default=float("nan"))
    return [
        f"{len(rows)} model types, of which {ran} run by themselves here: {ended['exact']} exact (largest deviation "
        f"{worst:.1g}), {ended['refused']} refused, {ended['wrong']} wrong, {ended['crash']} crashed: "
        f"{share:.1f} % exact or refused. {ended['not built']} were not built.",
        f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}.",
    ]


def write(rows, page=PAGE):
    """Write the counts and the tables into the page, between their marks."""
    text = page.read_text(encoding="utf-8")
    text = _between(text, "counts", counts(rows))
    page.write_text(_between(text, "ledger", _tables(rows)), encoding="utf-8")


def merge(rows, page=PAGE):
    """Write these rows into the page and leave all others as they are; the counts are made anew from all of them."""
    text = page.read_text(encoding="utf-8")
    kept = {row["model_type"]: row for row in _read(text)} | {row["model_type"]: row for row in rows}
    text = _between(text, "counts", counts(list(kept.values())))
    page.write_text(_between(text, "ledger", _tables(list(kept.values()))), encoding="utf-8")


def _read(text):
    """The rows that a page holds: how each ended, and its line as it stands."""
    group, rows = "", []
    for line in text.split("<!-- ledger -->")[1].splitlines():
        if line.startswith("### "):
            group = line[4:]
        cells = line.split(" | ")
        if not line.startswith("| `"):
            continue
        name, end = cells[0].strip("|` "), "not built" if group == "Not built" else cells[2].partition(" ")[0]
        row = {"model_type": name, "cls": cells[1], "end": end, "line": line}
        row["group"] = next((g for g in MAPPINGS if g.lower() == group.lower()), "base")
        rows.append(row | ({"worst": float(cells[2].partition("(")[2].rstrip(")"))} if end == "exact" else {}))
    return rows


def _between(text, mark, lines):
    body = "\n".join(["", *lines, ""])
    return re.sub(rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)", lambda m: m[1] + body + m[2], text, flags=re.DOTALL)


def _tables(rows):
    lines = []
    for group in MAPPINGS:
        own = [row for row in rows if row["group"] == group and row["end"] != "not built"]
        if own:
            lines += [
                "",
                f"### {group[0].upper()}{group[1:]}",
                "",
                "| model type | class | ends | reading | compared | why |",
                "|---|---|---|---|---|---|",
            ]
            lines += [_line(row) for row in sorted(own, key=lambda row: (ENDS.index(row["end"]), row["model_type"]))]
    lines += ["", "### Not built", "", "| model type | class | why |", "|---|---|---|"]
    unbuilt = sorted((row for row in rows if row["end"] == "not built"), key=lambda row: row["model_type"])
    lines += [row.get("line") or f"| `{row['model_type']}` | {row['cls']} | {_cell(row['note'])} |" for row in unbuilt]
    return lines


def _line(row):
    if "line" in row:
        return row["line"]
    end = f"exact ({row['worst']:.0e})" if row["end"] == "exact" else row["end"]
    reading = "" if row["end"] == "refused" else f"{row.get('reading', '')}{'' if row.get('edits') else ', no edits'}"
    return f"| `{row['model_type']}` | {row['cls']} | {end} | {reading} | {_compared(row)} | {_why(row)} |"


def _compared(row):
    """Towers, and what of them; what every entry has is not repeated."""
    names = dict.fromkeys(name.rsplit(" ", 1)[0] if " " in name else name for name in row.get("off") or {})
    return ", ".join(name for name in names if not name.endswith("edit"))


def _why(row):
    if row["end"] == "exact":
        return _cell("; ".join(f"{what}: {why}" for what, why in (row.get("left_out") or {}).items()))
    # A refusal with its way out; what TransformerLens does not serve either is the same in most of them.
    return _cell(row["note"].replace(f" {NO_BRIDGE}", ""), LONGEST_REFUSAL if row["end"] == "refused" else LONGEST)


def _cell(text, longest=LONGEST):
    text = re.sub(r"\s+", " ", str(text)).replace("|", "/").replace("<", "&lt;")
    return text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0] + " ..."
