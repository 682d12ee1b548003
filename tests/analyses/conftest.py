import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests of one module stay on one worker: they share what a script wrote."""
    for item in items:
        if "tests/analyses/" in item.path.as_posix():
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
