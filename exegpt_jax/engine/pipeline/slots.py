"""The slots of a pipeline: on every stage a part of the cache for each decode micro-batch, kept alike on all of them.

Slots go to the parts in turns (`solver.plan.micro_batches`). Whatever happens to a row happens on every stage; who is
alive, and how it samples, only the last stage knows.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from exegpt_jax.engine.api import EncodeRow
from exegpt_jax.engine.compiling import Program
from exegpt_jax.engine.pipeline.pipeline import Pipeline
from exegpt_jax.engine.programs import SLOTS_PER_CALL
from exegpt_jax.engine.state import Payload, State
from solver.plan.micro_batches import place_of


class PipelineSlots:
    """States by part and stage.

    Attributes:
      states: [part][stage that decodes]; a decode phase borrows a part's and brings them back.
      used: slots that hold a request.
      telling: of those, whose request asked for log-probabilities.
    """

    def __init__(self, pipeline: Pipeline, states: list[list[State]] | None = None) -> None:
        self._pipeline = pipeline
        self.used: set[int] = set()
        self.telling: set[int] = set()
        self.states = states or [[e.initial_state() for e in pipeline.decoders] for _ in range(pipeline.parts)]

    def carried(self, pipeline: Pipeline, resizes: Sequence[Program | None]) -> PipelineSlots:
        """The same rows in the same slots of another pipeline with as many parts, whose states `resizes` make."""
        states = [
            [
                state if resize is None else State(*resize.run(*state))
                for state, resize in zip(part, resizes, strict=True)
            ]
            for part in self.states
        ]
        other = PipelineSlots(pipeline, states)
        other.used, other.telling = self.used, self.telling
        return other

    def forget(self) -> None:
        """Frees the cache, before a new one is made."""
        self.states.clear()

    def release(self, slots: Sequence[int]) -> None:
        """Ends rows."""
        places: dict[int, list[int]] = collections.defaultdict(list)
        for slot in slots:
            part, place = place_of(slot, self._pipeline.parts)
            places[part].append(place)
        last = self._pipeline.decoders[-1]
        for part, own in places.items():
            self.states[part][-1] = last.release(self.states[part][-1], own)
        self.used.difference_update(slots)
        self.telling.difference_update(slots)

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        """Carries rows to free slots, of any part."""
        groups: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
        for source, target in moves:
            (part, place), (other, there) = (place_of(slot, self._pipeline.parts) for slot in (source, target))
            groups[part, other].append((place, there))
            for slots in (self.used, self.telling):
                if source in slots:
                    slots.remove(source)
                    slots.add(target)
        for (part, other), pairs in groups.items():
            for first in range(0, len(pairs), SLOTS_PER_CALL):
                self._carry(part, other, pairs[first : first + SLOTS_PER_CALL])

    def _carry(self, part: int, other: int, pairs: Sequence[tuple[int, int]]) -> None:
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        for index, engine in enumerate(self._pipeline.decoders):
            payload = engine.take(self.states[part][index], sources)
            if engine.last:
                self.states[part][index] = engine.release(self.states[part][index], sources)
            length = engine.plan.cache_tokens
            self.states[other][index] = engine.insert(self.states[other][index], payload, targets, length)

    def insert(self, payloads: Sequence[Payload], length: int, rows: Sequence[EncodeRow], slots: Sequence[int]) -> None:
        """Puts encoded prompts into slots, every stage its payload. Slots beyond the cache are dropped."""
        beyond = self._pipeline.parts * self._pipeline.decoders[0].plan.schedule.max_rows
        places = [place_of(min(slot, beyond), self._pipeline.parts) for slot in slots]
        for part in sorted({place_of(slot, self._pipeline.parts)[0] for slot in slots if slot < beyond}):
            for index, (engine, payload) in enumerate(zip(self._pipeline.decoders, payloads, strict=True)):
                # Beyond its part, a row is dropped.
                where = [place if own == part else engine.plan.schedule.max_rows for own, place in places]
                self.states[part][index] = engine.insert(self.states[part][index], payload, where, length)
        for row, slot in zip(rows, slots, strict=True):
            if slot < beyond:
                self.used.add(slot)
                if row.sampling.logprobs is not None:
                    self.telling.add(slot)

    def borrow(self, part: int) -> list[State]:
        """A part's states, for a decode phase."""
        states, self.states[part] = self.states[part], []
        return states

    def bring_back(self, part: int, states: Sequence[State]) -> None:
        self.states[part] = list(states)

    def parts_used(self) -> set[int]:
        """Parts in which anybody is."""
        return {place_of(slot, self._pipeline.parts)[0] for slot in self.used}
