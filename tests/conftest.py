"""Tests that need the `maise` program are skipped where it is not installed."""

import shutil

import pytest


def pytest_collection_modifyitems(items):
    if shutil.which("maise") is None:
        for item in items:
            if item.get_closest_marker("maise"):
                item.add_marker(pytest.mark.skip(reason="maise is not on PATH"))
