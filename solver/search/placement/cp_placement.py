"""The placement by CP-SAT: how often each pattern occurs, proven optimal.

`best_placement` minimises the objective of a `PlacementProblem`; where stages stand is left to
`placement.cp_packing`, which says what the cluster's tree allows without naming hosts. Redundant sums keep the
linear relaxation tight: on every pool the device time of all stages is at most the bottleneck times the devices. One
worker and a fixed seed, the only deterministic mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from ortools.sat.python import cp_model

from solver.search.placement.check_placement import faults_of
from solver.search.placement.cp_packing import Groups, add_packing
from solver.search.placement.placement_bounds import Reduced, reduce_problem
from solver.search.placement.placement_problem import Form, Pattern, Placement, PlacementProblem, value_ns

SEED = 0
# Deterministic work (about seconds) and settings of each attempt. Probing and symmetry took most of the time of
# problems that close at once, and are left to the later ones.
_ATTEMPTS = (
    (1.0, "linearization_level: 1 cp_model_probing_level: 0 symmetry_level: 0"),
    (1.0, "linearization_level: 1 cp_model_presolve: false"),
    (4.0, "linearization_level: 2"),
    (math.inf, "linearization_level: 1 search_branching: PSEUDO_COST_SEARCH"),
)


def best_placement(
    problem: PlacementProblem,
    time_limit_s: float,
    hint: Mapping[int, int] | None = None,
    beat_ns: int | None = None,
) -> Placement:
    """The placement with the least objective, or proof that there is none.

    Args:
      problem: see there.
      time_limit_s: wall time; beyond it the best so far is returned with its bound.
      hint: counts of a placement to start from; where it is one of this problem, patterns that cannot beat it are
        left out.
      beat_ns: only placements of at most this value are sought; where there is none, the bound is one above.
    """
    started = time.perf_counter()
    known = value_ns(problem, hint) if hint and not faults_of(problem, hint) else None
    upper = min((each for each in (known, beat_ns) if each is not None), default=None)
    model = _Model(problem, reduce_problem(problem, upper), upper)
    if hint:
        model.start_from(hint)
    counts, bound, proven = model.solve(max(0.001, time_limit_s - (time.perf_counter() - started)))
    if not counts and hint and known is not None and known == upper:
        counts = dict(hint)  # the time was over before the hint was taken up
    value = value_ns(problem, counts) if counts else None
    if counts and (faults := faults_of(problem, counts, value)):
        raise RuntimeError(f"placement: the solver's answer is none: {'; '.join(faults)}")
    if value is None and proven and beat_ns is not None:
        bound = beat_ns + 1
    if value is not None and bound is not None:
        bound = min(bound, value)
        proven = bound == value
    return Placement(counts, value, bound, proven, time.perf_counter() - started)


class _Model:
    """One CP-SAT model over the patterns in use."""

    def __init__(self, problem: PlacementProblem, reduced: Reduced, upper: int | None) -> None:
        self.problem, self.model = problem, cp_model.CpModel()
        self.patterns: dict[int, Pattern] = {index: problem.patterns[index] for index in reduced.useful}
        self.uses = {index: self.model.new_int_var(0, self._most(p), f"n{index}") for index, p in self.patterns.items()}
        self.groups = Groups(self.model, self.patterns, self.uses, problem.most_stages)
        self.alone = add_packing(problem, self.model, self.groups)
        self.occurs = {index: self._occurs(index) for index in reduced.useful}
        self._shapes()
        self.floors_ns = reduced.floors_ns
        self.slowest, self.path, self.pace = self._loads()
        self._objective(upper)

    def _most(self, pattern: Pattern) -> int:
        """How often it may occur."""
        if pattern.position != "middle":
            return 1
        devices = self.problem.pools[pattern.pool].devices // pattern.tensor
        return max(0, min(devices, (self.problem.layers - 2) // pattern.layers, self.problem.most_stages - 2))

    def _occurs(self, index: int) -> cp_model.IntVar:
        most = self._most(self.patterns[index])
        if most <= 1:
            return self.uses[index]
        occurs = self.model.new_bool_var(f"z{index}")
        self.model.add(self.uses[index] <= most * occurs)
        return occurs

    def _shapes(self) -> None:
        if self.problem.most_shapes is None:
            return
        used: dict[tuple[int, int, int], cp_model.IntVar] = {}
        for index, p in self.patterns.items():
            shape = (p.pool, p.tensor, p.layers)
            if shape not in used:
                used[shape] = self.model.new_bool_var(f"shape {shape}")
            self.model.add_implication(self.occurs[index], used[shape])
        self.model.add(cp_model.LinearExpr.sum(list(used.values())) <= self.problem.most_shapes)

    def _loads(self) -> tuple[list[cp_model.IntVar], list[cp_model.IntVar], list[cp_model.IntVar]]:
        """Bottleneck, path and pace of every load."""
        problem, model = self.problem, self.model
        slowest: list[cp_model.IntVar] = []
        paths: list[cp_model.IntVar] = []
        paces: list[cp_model.IntVar] = []
        for load, micro in enumerate(problem.micro_batches):
            times = {index: p.times_ns[load] for index, p in self.patterns.items()}
            most = max(times.values(), default=0)
            longest = (most + problem.path_ns[load]) * problem.most_stages
            # A floor above every time: nothing is left to choose from, and the model has no solution.
            slow = model.new_int_var(min(self.floors_ns[load], most), most, f"M{load}")
            for index, time_ns in times.items():
                if time_ns and self.patterns[index].position == "middle":
                    model.add(slow >= time_ns * self.occurs[index])
            for role in problem.roles:
                for ends in (("first", "both"), ("last", "both")):  # exactly one stage is such
                    alike = {
                        i: time_ns
                        for i, time_ns in times.items()
                        if self.patterns[i].role == role and self.patterns[i].position in ends
                    }
                    model.add(slow >= self._weighted(alike))
            path = model.new_int_var(0, longest, f"S{load}")
            backs = [
                problem.path_ns[load] * (1 - self.alone[role])
                for role in problem.roles
                if any(time_ns and self.patterns[index].role == role for index, time_ns in times.items())
            ]
            total = self._weighted(times)
            model.add(path == total + sum(backs))
            self._spread(load, times, slow)
            pace = model.new_int_var(0, max(micro * most, longest), f"T{load}")
            model.add(pace >= micro * slow)
            model.add(pace >= path)
            slowest.append(slow)
            paths.append(path)
            paces.append(pace)
        return slowest, paths, paces

    def _weighted(self, weights: Mapping[int, int]) -> cp_model.LinearExpr:
        return cp_model.LinearExpr.weighted_sum([self.uses[i] for i in weights], list(weights.values()))

    def _spread(self, load: int, times: Mapping[int, int], slow: cp_model.IntVar) -> None:
        """Redundant: device time on a pool is at most the bottleneck M times the devices in use; so are stages.

        Of the product only what is linear is kept: with a floor F of M and at most C devices, of which c are in use,
        (M - F) (C - c) >= 0 says c M <= C M - F (C - c).
        """
        floor = min(self.floors_ns[load], max(times.values(), default=0))
        for pool, shape in enumerate(self.problem.pools):
            here = {i: p.tensor for i, p in self.patterns.items() if p.pool == pool and times[i]}
            spent = {i: tensor * (times[i] - floor) for i, tensor in here.items()}
            self.model.add(self._weighted(spent) <= shape.devices * (slow - floor))
        stages = {i: time_ns - floor for i, time_ns in times.items() if time_ns}
        self.model.add(self._weighted(stages) <= self.problem.most_stages * (slow - floor))

    def _form(self, form: Form) -> cp_model.LinearExpr:
        variables: list[cp_model.IntVar] = []
        factors: list[int] = []
        for i, micro in enumerate(self.problem.micro_batches):
            variables += [self.pace[i], self.slowest[i], self.path[i]]
            factors += [form.pace[i], form.drained[i] * (micro - 1) + form.bottleneck[i], form.drained[i]]
        return cp_model.LinearExpr.weighted_sum(variables, factors) + form.constant_ns

    def _objective(self, upper: int | None) -> None:
        for limit in self.problem.limits:
            self.model.add(self._form(limit.form) <= limit.most_ns)
        if len(self.problem.objective) == 1:
            value = self._form(self.problem.objective[0])
        else:
            value = self.model.new_int_var(0, 2**60, "value")
            for form in self.problem.objective:
                self.model.add(value >= self._form(form))
        if upper is not None:
            self.model.add(value <= upper)
        self.model.minimize(value)

    def start_from(self, hint: Mapping[int, int]) -> None:
        self.model.clear_hints()
        for index, use in self.uses.items():
            self.model.add_hint(use, hint.get(index, 0))

    def solve(self, time_limit_s: float) -> tuple[dict[int, int], int | None, bool]:
        """Counts (empty: none found), the bound (None: none exists), and whether the search was completed.

        Now and then one way of searching does not end where another takes a moment, so that each but the last has a
        budget of deterministic work and hands on what it found.
        """
        deadline = time.perf_counter() + time_limit_s
        counts: dict[int, int] = {}
        bound: int | None = None
        for budget, settings in _ATTEMPTS:
            left_s = deadline - time.perf_counter()
            if left_s <= 0 and bound is not None:
                break
            solver = cp_model.CpSolver()
            solver.parameters.merge_text_format(settings)
            solver.parameters.num_workers = 1
            solver.parameters.random_seed = SEED
            solver.parameters.max_time_in_seconds = max(0.001, left_s)
            solver.parameters.max_deterministic_time = budget
            status = solver.solve(self.model)
            if status == cp_model.INFEASIBLE:
                return {}, None, True
            if status == cp_model.MODEL_INVALID:
                raise ValueError("placement: times or factors are beyond 64-bit whole numbers; scale them down")
            found = math.ceil(solver.best_objective_bound - 0.5)
            bound = found if bound is None else max(bound, found)
            if status != cp_model.UNKNOWN:
                counts = {index: n for index, use in self.uses.items() if (n := solver.value(use))}
                if status == cp_model.OPTIMAL:
                    return counts, bound, True
                self.start_from(counts)
        return counts, bound, False
