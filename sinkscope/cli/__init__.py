"""The command line: ``sinkscope run | sweep | show | plot | report | models | cite | demo``."""

from sinkscope.cli.app import main

__all__ = ["main"]
