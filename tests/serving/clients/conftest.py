"""Tests in this folder need the environment of the foreign clients and skip without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.clients import foreign


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies in this folder; pytest hands over the items of all of them."""
    missing = foreign.what_is_missing()
    if missing is None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=missing))
