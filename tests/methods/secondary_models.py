"""The constructed model of the wong2025 analysis, for the tests of its methods."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "analyses" / "wong2025" / "constructed.py"


def load():
    spec = importlib.util.spec_from_file_location("constructed", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
