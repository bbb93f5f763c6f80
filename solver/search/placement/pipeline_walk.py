"""Walking along a pipeline as it will stand on the devices: what stage may come next, and where that leads.

The next stage goes into the same island while it has room, or, where the stage before it hands over by a farther link,
into a new island of the host or a new host of any pool. So hosts and hand-overs happen, where the CP-SAT model counts
them by formulas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from solver.search.placement.placement_problem import Pattern, PlacementProblem

ANYWHERE = -1


@dataclasses.dataclass(frozen=True)
class State:
    """Where a walk along the pipeline stands.

    Attributes:
      role: index of the pipeline; all before it are complete.
      layers: placed, of that pipeline.
      pool: of the open island, or ANYWHERE where the next stage opens a host.
      free: devices left in the open island; 0 where the next stage opens an island of the open host.
      islands_left: of the open host, not opened.
      used, blocks, host_blocks: per pool: devices, islands opened, hosts opened.
      first_pool: of the pipeline's first stage.
      opened: (islands, hosts) that earlier pipelines opened.
      used_before: per pool: devices of earlier pipelines.
      shared_islands, shared_hosts: per pool: how often a pipeline may have ended in the island, or host, it began in.
    """

    role: int
    layers: int
    pool: int
    free: int
    islands_left: int
    used: tuple[int, ...]
    blocks: tuple[int, ...]
    host_blocks: tuple[int, ...]
    first_pool: int
    opened: tuple[int, int]
    used_before: tuple[int, ...]
    shared_islands: tuple[int, ...]
    shared_hosts: tuple[int, ...]


class Walk:
    """All pipelines out of some patterns."""

    def __init__(self, problem: PlacementProblem, allowed: Iterable[int]) -> None:
        self.problem = problem
        self.by_place: dict[tuple[str, int, str], list[int]] = {}
        for index in sorted(allowed):
            p = problem.patterns[index]
            self.by_place.setdefault((p.role, p.pool, p.position), []).append(index)
        self._role_most = {(role, pool): devices for role, pool, devices in problem.role_devices}

    def start(self) -> State:
        none = tuple(0 for _ in self.problem.pools)
        return State(0, 0, ANYWHERE, 0, 0, none, none, none, ANYWHERE, (0, 0), none, none, none)

    def steps(self, state: State) -> Iterator[tuple[int, State]]:
        """Patterns that may come next, with where they lead."""
        role = self.problem.roles[state.role]
        positions = ("first", "both") if state.layers == 0 else ("middle", "last")
        pools = range(len(self.problem.pools)) if state.pool == ANYWHERE else (state.pool,)
        for pool in pools:
            opened = self._open(state, pool)
            if opened is None:
                continue
            for position in positions:
                for index in self.by_place.get((role, pool, position), ()):
                    after = self._place(opened, self.problem.patterns[index])
                    if after is not None:
                        yield index, after

    def _open(self, state: State, pool: int) -> State | None:
        """The state with an island open in `pool`."""
        shape = self.problem.pools[pool]
        if state.free:
            return state
        blocks, host_blocks, islands_left = list(state.blocks), list(state.host_blocks), state.islands_left
        blocks[pool] += 1
        if state.pool == ANYWHERE:
            host_blocks[pool] += 1
            islands_left = shape.host_islands
        if not islands_left or blocks[pool] > shape.islands + 2 * len(self.problem.roles):
            return None
        return dataclasses.replace(
            state,
            pool=pool,
            free=shape.island_size,
            islands_left=islands_left - 1,
            blocks=tuple(blocks),
            host_blocks=tuple(host_blocks),
            first_pool=pool if state.layers == 0 else state.first_pool,
        )

    def _place(self, state: State, pattern: Pattern) -> State | None:
        """The state after a stage in the open island; None where it does not go there."""
        problem, pool = self.problem, pattern.pool
        layers, used = state.layers + pattern.layers, list(state.used)
        used[pool] += pattern.tensor
        ends = pattern.position in ("last", "both")
        if pattern.tensor > state.free or used[pool] > problem.pools[pool].devices:
            return None
        if used[pool] - state.used_before[pool] > self._role_most.get((pattern.role, pool), used[pool]):
            return None
        if layers > problem.layers or ends != (layers == problem.layers):
            return None
        state = dataclasses.replace(state, layers=layers, used=tuple(used), free=state.free - pattern.tensor)
        if ends:
            return self._finish(state, pool)
        if pattern.link == "island":
            return state if state.free else None
        if pattern.link == "host":
            return dataclasses.replace(state, free=0) if state.islands_left else None
        return dataclasses.replace(state, pool=ANYWHERE, free=0, islands_left=0)

    def _finish(self, state: State, pool: int) -> State | None:
        """The state before the next pipeline, or behind all."""
        opened = (sum(state.blocks), sum(state.host_blocks))
        shared = [list(state.shared_islands), list(state.shared_hosts)]
        for counts, now, before in zip(shared, opened, state.opened, strict=True):
            # Whoever comes back to where it began was in two more places.
            counts[pool] += state.first_pool == pool and now - before >= 3
        role = state.role + 1
        if role == len(self.problem.roles):
            for k, shape in enumerate(self.problem.pools):
                if state.blocks[k] > shape.islands + shared[0][k] + role - 1:
                    return None
                if state.host_blocks[k] > len(shape.hosts) + shared[1][k] + role - 1:
                    return None
        return State(
            role=role,
            layers=0,
            pool=ANYWHERE,
            free=0,
            islands_left=0,
            used=state.used,
            blocks=state.blocks,
            host_blocks=state.host_blocks,
            first_pool=ANYWHERE,
            opened=opened,
            used_before=state.used,
            shared_islands=tuple(shared[0]),
            shared_hosts=tuple(shared[1]),
        )
