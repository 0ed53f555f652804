"""One thread for all tests, and which of them are skipped."""

import os
import shutil

import pytest

# before numpy is loaded: threads of BLAS that wait for each other make tests on small matrices a hundred times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Skip what needs the `maise` program where it is not installed."""
    if shutil.which("maise") is None:
        for item in items:
            if item.get_closest_marker("maise"):
                item.add_marker(pytest.mark.skip(reason="maise is not on PATH"))
