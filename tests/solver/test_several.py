"""Several cases under one certificate: counts of micro-batches and placements against searching each alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from solver.search.proof.branch_and_bound import search
from solver.search.proof.limits import Limits
from solver.search.proof.several import Case, search_several
from tests.conftest import FULL
from tests.solver.test_branch_and_bound import MOST_ENCODE, MOST_ITERATIONS, make_instance

BOX = (1, MOST_ENCODE), (1, MOST_ITERATIONS)


def make_cases(seed: int) -> list[Case]:
    """One pipeline at several counts of micro-batches."""
    instance = make_instance(seed)
    latency = float(np.median([plain.latency_s for plain in instance.grid.values()])) if instance.grid else 1.0
    found = []
    for encode_parts in (1, 2, 3):
        for parts in (1, 2, 3):
            other = dataclasses.replace(instance, encode_micro_batches=encode_parts, micro_batches=parts)
            found.append(Case(other.bounds(), other.evaluate, Limits(latency_s=latency), BOX))
    return found


def test_equals_the_best_of_each_alone() -> None:
    skipped = 0
    for seed in range(60 if FULL else 10):
        cases = make_cases(seed)
        alone = [search(case.bounds, case.evaluate, case.limits, case.box) for case in cases]
        best = max(found.objective for found in alone)
        among = search_several(cases)
        assert among.found.objective == best
        assert among.found.complete
        assert among.found.gap == 0
        if among.case is not None:
            assert alone[among.case].objective == best
        assert all(found.objective <= hope for found, hope in zip(alone, among.hopes, strict=True))
        skipped += sum(found is None for found in among.alone)
        values = [row[1] for row in among.found.trace]
        assert values == sorted(values)
        assert all(row[2] >= best for row in among.found.trace)
    assert skipped


def test_a_gap_and_limits_keep_the_certificate_true() -> None:
    for seed in range(6):
        cases = make_cases(seed)
        best = search_several(cases).found.objective
        if best == -math.inf:
            continue
        close = search_several(cases, gap=0.2).found
        assert close.objective <= best <= close.bound * (1 + 1e-12)
        assert close.gap <= 0.2 * (1 + 1e-9)
        cut = search_several(cases, node_limit=1).found
        assert cut.bound >= best
        late = search_several(cases, time_limit_s=0.0).found
        assert (late.best, late.complete) == (None, False)
        assert late.bound >= best
        known = search_several(cases, incumbent=best).found
        assert (known.best, known.bound, known.gap) == (None, best, 0.0)


def test_nothing_among_cases_that_fit_nothing() -> None:
    cases = [dataclasses.replace(case, limits=Limits(latency_s=1e-9)) for case in make_cases(1)]
    among = search_several(cases)
    assert (among.case, among.found.best, among.found.gap, among.found.complete) == (None, None, 0.0, True)
    assert among.found.bound == pytest.approx(-math.inf)
