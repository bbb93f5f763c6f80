"""Times of stages for checking a plan: one lookup at a time, straight from the profile's tables.

This folder shares no code with `solver.simulate` or `solver.search`: it reads facts and plans, and works the formulas
of the steady state out in plain loops. What agrees with the search therefore does so for no common reason.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence

from solver.facts.cluster import Cluster, Link
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile, Table
from solver.facts.workload import Floats, Workload
from solver.plan.memory import dtype_bytes
from solver.plan.schedule import StageSpec

TOKEN_BYTES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """Everything that times depend on besides the schedule.

    Attributes:
      profiles: device kind -> profile.
      mean, mean2: E[I] and E[I^2] of prompts.
      prompts: length in tokens -> its share of requests.
      least, most: shortest prompt, longest prompt plus answer, in tokens.
    """

    spec: ModelSpec
    cluster: Cluster
    profiles: dict[str, Profile]
    mean: float
    mean2: float
    prompts: dict[int, float]
    least: int
    most: int


def setting_of(spec: ModelSpec, cluster: Cluster, profiles: Sequence[Profile], workload: Workload) -> Setting:
    mean = mean2 = 0.0
    prompts: dict[int, float] = {}
    for share, length in zip(workload.probability.tolist(), workload.input_tokens.tolist(), strict=True):
        mean += share * length
        mean2 += share * length * length
        prompts[length] = prompts.get(length, 0.0) + share
    return Setting(
        spec,
        cluster,
        {profile.device_kind: profile for profile in profiles},
        mean,
        mean2,
        prompts,
        min(workload.input_tokens.tolist()),
        max((workload.input_tokens + workload.output_tokens).tolist()),
    )


class StageTimes:
    """One stage of a pipeline; times include the hand-over to the next stage, or the head.

    Args:
      first, last: it carries the embedding, the head.
      next_stage: where it hands over to; None for the last.
    """

    def __init__(
        self, setting: Setting, stage: StageSpec, first: bool, last: bool, next_stage: StageSpec | None
    ) -> None:
        devices = setting.cluster.devices()
        self._setting, self._first, self._last = setting, first, last
        self._layers = stage.layers[1] - stage.layers[0]
        self._profile = setting.profiles[devices[stage.devices[0]].kind]
        kinds = setting.spec.layer_kinds()
        self._kinds = [
            (self._profile.layer(stage.tensor, kind), kinds.count(kind) / len(kinds)) for kind in dict.fromkeys(kinds)
        ]
        self._ends = self._profile.end(stage.tensor)
        # Contexts of the workload at which the tables bend, and its ends.
        least, most = float(setting.least), float(max(setting.most, setting.least + 1))
        bends = {float(context) for times, _ in self._kinds for context in times.decode.second}
        self._knots = sorted({least, most, *(context for context in bends if least < context < most)})
        self._link = None if next_stage is None else link_between(setting.cluster, stage, next_stage)
        self._token_bytes = setting.spec.hidden_size * dtype_bytes(self._profile.dtype)

    @property
    def phase_s(self) -> float:
        """Fixed cost of a decode call."""
        return self._profile.phase_s

    def encode_s(self, prompts: float) -> float:
        """So many prompts of the workload in one call; straight between whole numbers, 0 for none."""
        return _between_rows(self._encode_whole_s, prompts)

    def call_s(self, rows: int, tokens: int) -> float:
        """One encode call of a compiled shape."""
        return self._encode_call_s(rows, tokens, rows * tokens, rows)

    def decode_s(self, rows: float, context: float) -> float:
        """One iteration; straight between whole numbers of rows (0 for none) and between the tables' contexts."""
        i = min(max(bisect.bisect_right(self._knots, context) - 1, 0), len(self._knots) - 2)
        low, high = self._knots[i], self._knots[i + 1]
        share = min(max((context - low) / (high - low), 0.0), 1.0)
        below = _between_rows(lambda whole: self._decode_whole_s(whole, low), rows)
        if share == 0:
            return below
        return below * (1 - share) + share * _between_rows(lambda whole: self._decode_whole_s(whole, high), rows)

    def _encode_whole_s(self, prompts: int) -> float:
        """One prompt at each of its lengths; more as the uniform batch of the same tokens and squared lengths."""
        mean, mean2 = self._setting.mean, self._setting.mean2
        if prompts == 1:
            return self._encode_ends_s(self._one_prompt_s, mean, 1)
        return self._encode_call_s(prompts * mean * mean / mean2, mean2 / mean, prompts * mean, prompts)

    @functools.cached_property
    def _one_prompt_s(self) -> float:
        """Expected seconds of one layer for one prompt."""
        return sum(part * self._layer_s(1, tokens) for tokens, part in self._setting.prompts.items())

    def _layer_s(self, rows: float, tokens: float) -> float:
        return sum(share * lookup(times.encode, rows, tokens) for times, share in self._kinds)

    def _encode_call_s(self, rows: float, tokens: float, all_tokens: float, sampled: int) -> float:
        return self._encode_ends_s(self._layer_s(rows, tokens), all_tokens, sampled)

    def _encode_ends_s(self, layer_s: float, all_tokens: float, sampled: int) -> float:
        """The stage's layers, what its place in the pipeline adds, and the call's dispatch."""
        total = self._layers * layer_s
        if self._first:
            total += lookup(self._ends.embed, all_tokens, 0.0)
        if self._link is None:
            total += lookup(self._ends.head, sampled, 0.0)
        else:
            total += transfer_s(self._link, all_tokens * self._token_bytes)
        return total + self._profile.dispatch_s

    def _decode_whole_s(self, rows: int, context: float) -> float:
        total = self._layers * sum(share * lookup(times.decode, rows, context) for times, share in self._kinds)
        if self._first:
            total += lookup(self._ends.embed, rows, 0.0)
        if self._link is None:
            # Iterations of a phase that goes in one dispatch have none of their own.
            return (
                total
                + lookup(self._ends.head, rows, 0.0)
                + (0.0 if self.phase_s else self._profile.iteration_dispatch_s)
            )
        return total + transfer_s(self._link, rows * self._token_bytes) + self._profile.iteration_dispatch_s


def _between_rows(whole_s: Callable[[int], float], rows: float) -> float:
    low = int(rows)
    below = whole_s(low) if low > 0 else 0.0
    part = rows - low
    return below if part == 0 else below * (1 - part) + whole_s(low + 1) * part


def lookup(table: Table, first: float, second: float) -> float:
    """Seconds: straight lines between the table's points; beyond its end straight on or level; its begin below it."""
    i, x = _place(table.first, first)
    j, y = _place(table.second, second)
    rows, columns = len(table.first), len(table.second)
    i2, j2 = min(i + 1, rows - 1), min(j + 1, columns - 1)
    seconds = table.seconds
    low = _onward(float(seconds[i, j]), float(seconds[i, j2]), y)
    high = _onward(float(seconds[i2, j]), float(seconds[i2, j2]), y)
    return _onward(low, high, x)


def _onward(low: float, high: float, share: float) -> float:
    """Between two points, or beyond the second: there straight on, but level where the line falls."""
    if share <= 1:
        return low * (1 - share) + high * share
    return high + max(high - low, 0.0) * (share - 1)


def _place(points: Floats, value: float) -> tuple[int, float]:
    if len(points) == 1:
        return 0, 0.0
    value = max(value, float(points[0]))
    i = min(bisect.bisect_right(points, value) - 1, len(points) - 2)
    return i, (value - float(points[i])) / (float(points[i + 1]) - float(points[i]))


def transfer_s(link: Link, size_bytes: float) -> float:
    """Seconds over a link: its table, straight between rows, or latency and bandwidth."""
    if not link.table:
        return link.latency_s + size_bytes / link.bytes_per_s
    sizes = [row[0] for row in link.table]
    if size_bytes >= sizes[-1]:
        return link.table[-1][1] + (size_bytes - sizes[-1]) / link.bytes_per_s
    if size_bytes <= sizes[0]:
        return link.table[0][1]
    i = bisect.bisect_right(sizes, size_bytes) - 1
    (low, low_s), (high, high_s) = link.table[i], link.table[i + 1]
    return low_s + (high_s - low_s) * (size_bytes - low) / (high - low)


def link_between(cluster: Cluster, first: StageSpec, second: StageSpec) -> Link:
    """The slowest level that any of one's devices reaches any of the other's over."""
    devices = cluster.devices()
    pairs = [(devices[a], devices[b]) for a in first.devices for b in second.devices]
    if any(a.host != b.host for a, b in pairs):
        return cluster.pod
    if any(a.island != b.island for a, b in pairs):
        return cluster.host
    return cluster.island
