"""A placement checked from scratch: plain loops over its stages, none of the solvers' code.

`faults_of` says what is wrong with counts, in words; nothing means that they are a placement of the problem. Whether
the devices can hold its blocks as charged is for `placement.layout` to show, which does it.
"""

from __future__ import annotations

from collections.abc import Mapping

from solver.search.placement.placement_problem import Form, PlacementProblem


def faults_of(problem: PlacementProblem, counts: Mapping[int, int], value_ns: int | None = None) -> tuple[str, ...]:
    """What is wrong with a placement, and with the value that it is said to have."""
    if any(n < 0 or not 0 <= index < len(problem.patterns) for index, n in counts.items()):
        return ("counts name patterns that are not there",)
    stages = [problem.patterns[index] for index, n in counts.items() for _ in range(n)]
    faults = []
    for role in problem.roles:
        mine = [stage for stage in stages if stage.role == role]
        layers = sum(stage.layers for stage in mine)
        if layers != problem.layers:
            faults.append(f"{role}: {layers} of {problem.layers} layers")
        ends = sorted(stage.position for stage in mine if stage.position != "middle")
        if ends != ["first", "last"] and (ends != ["both"] or len(mine) != 1):
            faults.append(f"{role}: ends are {ends}")
    if len(stages) > problem.most_stages:
        faults.append(f"{len(stages)} stages; at most {problem.most_stages}")
    for index, pool in enumerate(problem.pools):
        used = sum(stage.tensor for stage in stages if stage.pool == index)
        if used > pool.devices:
            faults.append(f"{used} of {pool.devices} {pool.kind}")
    for role, index, most in problem.role_devices:
        used = sum(stage.tensor for stage in stages if (stage.role, stage.pool) == (role, index))
        if used > most:
            faults.append(f"{role}: {used} {problem.pools[index].kind}; at most {most}")
    shapes = {(stage.pool, stage.tensor, stage.layers) for stage in stages}
    if problem.most_shapes is not None and len(shapes) > problem.most_shapes:
        faults.append(f"{len(shapes)} compiled shapes; at most {problem.most_shapes}")
    values = [_value(problem, form, counts) for form in problem.objective]
    if value_ns is not None and max(values) != value_ns:
        faults.append(f"value {max(values)} ns, said to be {value_ns}")
    broken = [limit.form.name for limit in problem.limits if _value(problem, limit.form, counts) > limit.most_ns]
    return (*faults, *(f"limit {name} exceeded" for name in broken))


def _value(problem: PlacementProblem, form: Form, counts: Mapping[int, int]) -> int:
    total = form.constant_ns
    for load, micro in enumerate(problem.micro_batches):
        times = [problem.patterns[i].times_ns[load] for i, n in counts.items() for _ in range(n)]
        back = any(problem.patterns[i].times_ns[load] and problem.patterns[i].position == "last" for i in counts)
        slowest, path = max(times, default=0), sum(times) + (problem.path_ns[load] if back else 0)
        total += form.pace[load] * (micro * slowest if micro * slowest > path else path)
        total += form.drained[load] * (path + slowest * (micro - 1)) + form.bottleneck[load] * slowest
    return total
