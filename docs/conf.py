"""Sphinx settings: Markdown pages, notebooks executed when the site is built, warnings are errors (`make docs`)."""

import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from sinkscope import __version__

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "sinkscope"
author = "The sinkscope developers"
copyright = "the sinkscope developers, MIT licence"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
# index.md lists "[ab]*s": architectures, and benchmarks where `make bench` has written that page.

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = f"sinkscope {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../llms.txt"]
html_show_sourcelink = False
html_sidebars = {"quickstart": [], "concepts": [], "gallery": [], "architectures": [], "benchmarks": []}
html_theme_options: dict[str, Any] = {
    "logo": {"text": "sinkscope"},
    "navbar_align": "left",
    "navbar_persistent": [],
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}

autosummary_generate = True
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 90
napoleon_use_rtype = False

copybutton_exclude = ".linenos, .gp, .go"

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures go into the page, whatever the shell says
    "PYTHONWARNINGS": "ignore:IProgress not found",  # progress bars are no part of a page
}


def _ipython_folder() -> Path:
    """A profile for the kernels: without the startup files of whoever builds, and without notes on their transport."""
    profile = DOCS / "_build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(
        "c = get_config()\nc.IPKernelApp.log_level = 40\n", encoding="utf-8"
    )
    return profile.parent


os.environ["IPYTHONDIR"] = str(_ipython_folder())


def _package_hash() -> str:
    """Digest of the package's source: notebooks run again when it changes, not only when they do."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "sinkscope").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / "executed" / _package_hash())
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True


def copy_notebooks() -> None:
    """Copy `notebooks/` to where Sphinx looks, with links into docs/ made right for there."""
    target = DOCS / "notebooks"
    target.mkdir(exist_ok=True)
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for old in {path.name for path in target.glob("*.ipynb")} - {path.name for path in sources}:
        (target / old).unlink()
    for source in sources:
        text = source.read_text(encoding="utf-8").replace("](../docs/", "](../")
        copy = target / source.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make docstrings safe for RST: a bar outside a literal is no substitution, dots inside one end no sentence."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        parts[1::2] = [part.replace("...", "…") for part in parts[1::2]]
        lines[i] = "``".join(parts)


def setup(app: Any) -> None:
    """Register the hook."""
    app.connect("autodoc-process-docstring", as_rst)


copy_notebooks()
sys.path.insert(0, str(DOCS))
importlib.import_module("apipages").write(DOCS / "api" / "generated")
