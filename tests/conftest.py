"""One thread for all tests, which of them come first, and which are skipped."""

import os
import shutil

import pytest

# before numpy is loaded: threads of BLAS that wait for each other make tests on small matrices a hundred times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Start with files that hold slow ones, lest one core waits at the end; skip what needs `maise` where it is not."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if shutil.which("maise") is None:
        for item in items:
            if item.get_closest_marker("maise"):
                item.add_marker(pytest.mark.skip(reason="maise is not on PATH"))
