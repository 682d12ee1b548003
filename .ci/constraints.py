"""Resolve all extras together for this Python and write constraints.txt anew; what changed is printed.

python .ci/constraints.py             asks the package index; installs nothing
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
# Carried by no extra: what builds the package, and models that come as packages (their dependencies are not wanted).
BESIDE = ("hatchling", "editables")


def pins(text: str) -> dict[str, str]:
    """Return version by name of a constraints file."""
    return dict(line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))


def resolved() -> dict[str, str]:
    """Ask pip for one resolve of every extra; a local build (``2.13.0+cpu``) is written without its label."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = ",".join(project["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        call = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-build-isolation"]
        wanted = [f"{ROOT}[{extras}]", *BESIDE]
        subprocess.run([*call, "--report", str(report), *wanted], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    named = {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found}
    return {name: version.partition("+")[0] for name, version in named.items() if name != "sinkscope"}


def rewrite(text: str, new: dict[str, str]) -> tuple[str, list[str]]:
    """Return the file with new versions, names that pip did not meet left as they are, and a line for each change."""
    old = pins(text)
    head = [line for line in text.splitlines() if line.startswith("#")]
    merged = old | new
    changes = [f"{name} {old.get(name, '-')} -> {version}" for name, version in new.items() if old.get(name) != version]
    lines = [f"{name}=={merged[name]}" for name in sorted(merged)]
    odd = [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", line)]
    if odd:
        raise SystemExit(f"constraints: {odd} are no exact versions")
    return "\n".join([*head, *lines]) + "\n", changes


def main() -> None:
    """Resolve and write."""
    text, changes = rewrite(FILE.read_text(encoding="utf-8"), resolved())
    FILE.write_text(text, encoding="utf-8")
    print("\n".join(changes) or "nothing changed")


if __name__ == "__main__":
    main()
