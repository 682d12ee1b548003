"""Build the wheel and the source distribution, install the wheel in a clean environment, and use it there.

    python .ci/package.py                 into out/dist; seconds, no network
    python .ci/package.py --download      the same, with the dependencies from the package index instead of links

The clean environment holds the wheel and the distributions that its metadata asks for, and nothing else: without
``--download`` they are links to those of the environment this runs in. So a dependency that was forgotten, a file that
is not in the wheel, or a test helper that the package leans on is found here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SMOKE = """
import os, sys, sinkscope as sk
from importlib.metadata import version
assert sk.__version__ == version("sinkscope"), (sk.__version__, version("sinkscope"))
assert os.path.realpath(sk.__file__).startswith(os.path.realpath(sys.prefix)), sk.__file__
model = sk.load_model("zoo:lm-python")
prompts = sk.Prompts.from_texts(sk.tasks.corpora.snippets()[:6], model)
edits = [sk.MaskKeys("first", layers=[5])]
readings = sk.run(model, prompts, [sk.KeyMass(), sk.ValueNorm()], edits=edits, batch_size=6)
print("sink rate", float(sk.metrics.sink_rate(readings)))
sk.save(readings, "readings.nc")
"""
COMMANDS = (
    ("--version",), ("list", "probes"), ("show", "readings.nc"), ("cite", "readings.nc"),
    ("plot", "sink-map", "readings.nc", "--output", "sink.png"),
)  # fmt: skip


def closure(requirements: list[str], extra: str = "") -> dict[str, Distribution]:
    """Return the installed distributions that requirements ask for, and those that these ask for, by name."""
    found: dict[str, Distribution] = {}
    todo = [(Requirement(text), extra) for text in requirements]
    while todo:
        wanted, of = todo.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": of}):
            continue
        name = canonicalize_name(wanted.name)
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is required and not installed here; run make check first") from None
        if name not in found:
            found[name] = dist
            todo += [(Requirement(text), "") for text in dist.requires or ()]
        for each in wanted.extras:
            todo += [(Requirement(text), each) for text in dist.requires or () if "extra" in text]
    return found


def link(dist: Distribution, target: Path) -> None:
    """Link what a distribution put into site-packages into another site-packages."""
    for top in sorted({file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}):
        source, place = Path(str(dist.locate_file(top))), target / top
        if place.is_symlink() or not source.exists():
            continue
        place.symlink_to(source.resolve())


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source distribution, and the wheel from what is in it, and return both."""
    shutil.rmtree(folder, ignore_errors=True)
    call = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*call, "-t", "sdist", "-d", str(folder)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        (unpacked,) = Path(place).iterdir()
        subprocess.run([*call, "-t", "wheel", "-d", str(folder)], check=True, cwd=unpacked, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def needed() -> list[str]:
    """Return every file of the package as it lies in this repository: sources, templates, texts, weights."""
    found = (ROOT / "sinkscope").rglob("*")
    files = (path for path in found if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc")
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def check_wheel(wheel: Path) -> list[str]:
    """Look into the wheel and return what it requires.

    Raises:
        SystemExit: a file is missing, or one is in it that belongs elsewhere.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    missing = sorted(set(needed()) - set(names))
    odd = sorted({name.partition("/")[0] for name in names if not name.startswith(("sinkscope/", "sinkscope-"))})
    if missing or odd or not any("licenses/LICENSE" in name for name in names):
        raise SystemExit(f"{wheel.name}: lacks {missing or 'its licence'}, holds {odd}")
    head = text.partition("\n\n")[0].splitlines()
    return [line.partition(": ")[2] for line in head if line.startswith("Requires-Dist: ")]


def install(wheel: Path, requires: list[str], place: Path, *, download: bool) -> Path:
    """Make an environment with the wheel and what it requires, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    call = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
    if download:
        subprocess.run([*call, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
        return python
    subprocess.run([*call, "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    for dist in closure(requires).values():
        link(dist, site)
    return python


def smoke(python: Path, place: Path) -> None:
    """Use what was installed from an empty folder, as a stranger would."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([str(python), "-I", "-c", SMOKE], check=True, cwd=place, env=env)
    for command in COMMANDS:
        done = subprocess.run(
            [str(python.with_name("sinkscope")), *command],
            check=False,
            cwd=place,
            env=env,
            capture_output=True,
            text=True,
        )
        if done.returncode or not done.stdout:
            raise SystemExit(f"sinkscope {' '.join(command)} failed in a clean environment:\n{done.stderr}")
    assert (place / "sink.png").stat().st_size > 5000


def main() -> None:
    """Build, look, install, use."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--output", type=Path, default=ROOT / "out" / "dist")
    options.add_argument("--download", action="store_true", help="install dependencies from the index, not by links")
    chosen = options.parse_args()
    sdist, wheel = build(chosen.output)
    requires = check_wheel(wheel)
    with tempfile.TemporaryDirectory() as folder:
        python = install(wheel, requires, Path(folder) / "env", download=chosen.download)
        work = Path(folder) / "work"
        work.mkdir()
        smoke(python, work)
    for path in (sdist, wheel):
        print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB) installs and works")


if __name__ == "__main__":
    main()
