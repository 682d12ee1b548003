"""Every test runs offline, on one thread, with the shape annotations of sinkscope checked on every call."""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PIP_NO_INDEX": "1",  # some libraries install packages by themselves when they are loaded
    "WANDB_MODE": "disabled",
    "MPLBACKEND": "Agg",
    "TRITON_INTERPRET": "1",  # kernels of the GPU path run on the CPU
}

# After the settings above, which libraries read when they are imported.
import pytest
from jaxtyping import install_import_hook

install_import_hook(["sinkscope", "recipes"], "shapecheck.check_shapes")

LONG = ("test_notebooks.py", "cli/test_demo.py", "engine/sweep/test_cache.py", "engine/sweep/test_driver.py")


def pytest_collection_modifyitems(items):
    """Put the longest modules first: each runs on one worker, and at the end none is left waiting for another."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


@pytest.fixture(scope="module")
def browser():
    """Give a running Chromium."""
    from chromium import chromium  # of use to few files, and slow to import

    with chromium() as started:
        yield started
