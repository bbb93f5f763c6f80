"""Every request whose last event has not come, and what has come of it: nothing is lost, doubled or told twice."""

from __future__ import annotations

from exegpt_jax.runner.events import Event, Finished, Tokens
from exegpt_jax.runner.request import Request
from serving.engine.kept import Kept
from solver.plan.plan import Plan


class Ledger:
    """In the order of asking. Small and passive; used on the event loop."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def enter(self, request: Request) -> None:
        self._kept[request.id] = Kept(request)

    def strike(self, request_id: str) -> bool:
        """Nobody wants it any more; whether it was here."""
        return self._kept.pop(request_id, None) is not None

    def take(self, events: list[Event]) -> list[Event]:
        """What an engine told; only events of requests that are here are left."""
        known = []
        for event in events:
            kept = self._kept.get(event.id)
            if kept is None:
                continue
            if isinstance(event, Tokens):
                kept.add(event)
            else:
                del self._kept[event.id]
            known.append(event)
        return known

    def died(self) -> None:
        """The engine that worked on them has gone."""
        for kept in self._kept.values():
            kept.deaths += 1

    def go_on(self, plan: Plan) -> tuple[list[Request], list[Event]]:
        """What to ask a new engine, and the ends of those that it is not asked for."""
        asked: list[Request] = []
        ended: list[Event] = []
        for kept in tuple(self._kept.values()):
            following = kept.go_on(plan)
            if isinstance(following, Finished):
                del self._kept[kept.request.id]
                ended.append(following)
            else:
                asked.append(following)
        return asked, ended

    def end_overdue(self, before_s: float) -> list[Event]:
        """Strikes those whose deadline lies before that moment; their ends."""
        deadlines = ((kept, kept.request.deadline_s) for kept in self._kept.values())
        overdue = [kept for kept, deadline_s in deadlines if deadline_s is not None and deadline_s < before_s]
        for kept in overdue:
            del self._kept[kept.request.id]
        return [kept.ended("deadline", "the deadline passed") for kept in overdue]

    def end_all(self, detail: str) -> list[Event]:
        """Strikes everybody; their ends."""
        kept, self._kept = list(self._kept.values()), {}
        return [one.ended("abort", detail) for one in kept]
