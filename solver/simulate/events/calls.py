"""What one call of a program costs on one stage: a profile looked up at the call's own shape.

Event simulations and the predictions beside a running plan (`solver.simulate.predicted`) both add calls up from here.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

from solver.facts.cluster import Cluster, Level
from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.profile import Profile, Table
from solver.plan.memory import dtype_bytes


class Place(Protocol):
    """A stage as far as its calls' times depend on it.

    Attributes:
      kind, tensor: of its devices; tensor-parallel degree.
      layers: how many.
      first, last: it carries the embedding, the head.
      link: level of the link to the next stage; None for the last one.
    """

    @property
    def kind(self) -> str: ...
    @property
    def tensor(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def first(self) -> bool: ...
    @property
    def last(self) -> bool: ...
    @property
    def link(self) -> Level | None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class CallTimes:
    """Seconds of calls.

    Attributes:
      profiles: by device kind.
      spec: of the model, for its layer kinds and sizes.
      cluster: for its links; None where no stage has one.
    """

    profiles: Mapping[str, Profile]
    spec: ModelSpec
    cluster: Cluster | None

    def encode_s(self, stage: Place, rows: float, tokens: float) -> float:
        """Layers and embedding of one stage on an encode call of `rows` x `tokens`."""
        spent = self._layers_s(stage, "encode", rows, tokens)
        if stage.first:
            spent += _at(self.profiles[stage.kind].end(stage.tensor).embed, rows * tokens, 0.0)
        return spent

    def decode_s(self, stage: Place, rows: float, attended: float) -> float:
        """One iteration on one stage, hand-over included."""
        profile = self.profiles[stage.kind]
        spent = self._layers_s(stage, "decode", rows, attended)
        end = profile.end(stage.tensor)
        if stage.first:
            spent += _at(end.embed, rows, 0.0)
        if stage.last:
            return spent + _at(end.head, rows, 0.0) + (0.0 if profile.phase_s else profile.iteration_dispatch_s)
        return spent + self._move_s(stage, rows, profile.iteration_dispatch_s)

    def leave_s(self, stage: Place, rows: float, tokens: float) -> float:
        """What an encode call ends with: the head over `rows`, or `tokens` handed to the next stage; its dispatch."""
        profile = self.profiles[stage.kind]
        if stage.last:
            return _at(profile.end(stage.tensor).head, rows, 0.0) + profile.dispatch_s
        return self._move_s(stage, tokens, profile.dispatch_s)

    def _move_s(self, stage: Place, tokens: float, dispatch_s: float) -> float:
        profile = self.profiles[stage.kind]
        if stage.link is None:
            return 0.0
        assert self.cluster is not None, "stages with links stand in a cluster"
        size = tokens * self.spec.hidden_size * dtype_bytes(profile.dtype)
        return float(self.cluster.link(stage.link).transfer_s(size)) + dispatch_s

    def _layers_s(self, stage: Place, phase: str, rows: float, second: float) -> float:
        profile = self.profiles[stage.kind]
        mean = 0.0
        for kind, share in self._kinds.items():
            times = profile.layer(stage.tensor, kind)
            mean += share * _at(times.encode if phase == "encode" else times.decode, rows, second)
        return stage.layers * mean

    @functools.cached_property
    def _kinds(self) -> dict[LayerKind, float]:
        counts = collections.Counter(self.spec.layer_kinds())
        return {kind: count / self.spec.num_layers for kind, count in counts.items()}


def _at(table: Table, first: float, second: float) -> float:
    """Nothing costs less than the smallest sizes measured."""
    return float(table.at(max(first, table.first[0]), max(second, table.second[0])))
