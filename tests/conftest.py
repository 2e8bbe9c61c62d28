"""Tests that need the hub run where they are asked for: they fetch gigabytes of weights."""

from __future__ import annotations

import os

import pytest

VARIABLE = "STEPDISTILL_NETWORK_TESTS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `network`, unless the variable is set."""
    if os.environ.get(VARIABLE):
        return
    skip = pytest.mark.skip(reason=f"needs the hub; set {VARIABLE}=1 to run it")
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(skip)
