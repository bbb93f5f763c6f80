"""A server at 80% of its load, with killed engines and bad clients: two minutes of it, an hour in make test-full."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import soak


def test_nothing_is_lost_and_nothing_is_left(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    found, own = soak.soak(tiny_model, tmp_path, 3600 if full else 120)
    print(soak.report({}, found, own))
    assert found.wrong == []
    assert own == []
    assert all(found.ended[kind] > 0 for kind in soak.KINDS)
    assert found.blows.total() > 0
    assert found.descriptors[1] <= found.descriptors[0] + 4
    # A slope takes an hour to tell; two minutes tell a leak of a few kB a request.
    assert found.grown_bytes < 8 * 2**20
    if full:
        assert found.slope_bytes_per_h < 1e6
