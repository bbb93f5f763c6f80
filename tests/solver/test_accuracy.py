"""Accuracy goals A2, A3, A4 and A7 on reduced data; the benchmarks of the same names report all of it."""

from __future__ import annotations

import numpy as np
import pytest

from solver.importers.devices import DEVICES
from solver.importers.gemm import gemm_grid
from solver.importers.tables import TABLES
from tests.benchmarks import accuracy_heldout, accuracy_memory, accuracy_silicon, accuracy_tables
from tests.conftest import FULL

pytestmark = pytest.mark.skipif(not TABLES.is_dir(), reason=f"needs the published tables at {TABLES}")


def test_leaving_out_never_sees_what_it_predicts() -> None:
    rng = np.random.default_rng(5)
    axes = tuple(np.cumprod(rng.uniform(1.2, 3, n)).astype(np.float64) for n in (5, 4, 6))
    values = rng.normal(size=(5, 4, 6))

    def predictions(changed: np.ndarray) -> list[float]:
        alone, together = accuracy_tables.leave_one_out(axes, changed)
        # Errors are of times: prediction over the point itself.
        return [float(np.log(e[2, 1, 3] + 1) + changed[2, 1, 3]) for e in (*alone, together)]

    before = predictions(values)
    changed = values.copy()
    changed[2, 1, 3] += 10
    assert predictions(changed) == pytest.approx(before)


def test_leaving_out_finds_a_power_law_exactly() -> None:
    axes = (np.array([1.0, 2.0, 5.0, 9.0]), np.array([3.0, 4.0, 10.0]))
    law = 0.5 * np.log(axes[0])[:, None] - 2 * np.log(axes[1])
    alone, together = accuracy_tables.leave_one_out(axes, law)
    for errors in (*alone, together):
        assert np.nanmax(np.abs(errors)) < 1e-12


@pytest.mark.parametrize("kind", accuracy_tables.SYSTEMS if FULL else ["h100-80g"])
def test_a2_products(kind: str) -> None:
    device = DEVICES[kind]
    grid = gemm_grid(TABLES, device, "vllm", device.vllm)
    _, together = accuracy_tables.leave_one_out(grid.axes, accuracy_tables.measured(grid))
    middle, most = np.percentile(np.abs(together[np.isfinite(together)]), [50, 90])
    assert middle <= 0.03
    assert most <= 0.125


def test_a3_held_out_rows() -> None:
    seeds = accuracy_heldout.SEEDS if FULL else (7,)
    found = accuracy_heldout.operator_errors(TABLES, seeds) | accuracy_heldout.attention_errors(TABLES, seeds)
    kinds = {name.split(",")[0] for name in found}
    assert {"mlp_up_proj", "attn_pre_proj", "attn_decode", "attn_prefill"} <= kinds
    for kind in kinds:
        errors = np.concatenate([found[name] for name in found if name.startswith(f"{kind},")])
        assert np.abs(errors).mean() <= 0.05, kind


def test_a4_composition_against_silicon() -> None:
    found = accuracy_silicon.both(TABLES)
    assert [len(runs.batch) for runs in found.values()] == [90, 177]
    for runs in found.values():
        assert np.abs(accuracy_silicon.uncalibrated(runs)).mean() <= 0.15


def test_a7_every_row_of_the_published_capacities() -> None:
    found = accuracy_memory.capacities(TABLES)
    assert len(found) == 76
    for row in found:
        assert row.by_convention_tokens == pytest.approx(row.published_tokens, rel=1e-3), row
        assert row.by_our_bytes_tokens == pytest.approx(row.published_tokens, rel=0.05), row
