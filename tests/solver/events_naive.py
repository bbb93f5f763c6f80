"""A second event simulation, request by request and token by token, as plainly as it can be said: the oracle of tests.

One stage, compaction by iteration, policies that alternate phases. It shares the tables of a Pipeline and the runner's
own policies, nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from exegpt_jax.runner.policies import POLICIES, View
from solver.plan.schedule import Schedule
from solver.simulate.costs import Pipeline
from solver.simulate.events.arrivals import Demand


@dataclasses.dataclass
class Person:
    """One request on its way."""

    arrival_s: float
    prompt: int
    output: int
    generated: int = 0
    start_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0


def run(
    schedule: Schedule, pipeline: Pipeline, demand: Demand, delivery: str, first_token: str = "encode"
) -> tuple[list[Person], list[int]]:
    """Everybody with their times, and the rows that decode at the start of each phase."""
    arrivals = [0.0] * len(demand) if demand.arrival_s is None else [float(a) for a in demand.arrival_s]
    pairs = zip(arrivals, demand.input_tokens, demand.output_tokens, strict=True)
    people = [Person(arrival_s, int(prompt), int(output)) for arrival_s, prompt, output in pairs]
    waiting, now_s = list(people), 0.0
    batch: list[Person] = []
    live: list[Person] = []
    rows: list[int] = []
    while waiting or live:
        if not live:
            now_s = max(now_s, waiting[0].arrival_s)
        there = [person for person in waiting if person.arrival_s <= now_s]
        view = View(waiting=len(there), encoding=0, live=len(live), free=schedule.max_rows - len(live))
        decision = POLICIES[schedule.policy](schedule, view)
        admitted, waiting = waiting[: decision.admit], waiting[decision.admit :]
        for person in admitted:
            person.start_s = now_s
        if admitted:
            parts = -(-len(admitted) // schedule.encode_micro_batch)
            for part in range(parts):
                now_s += float(pipeline.encode_s(np.array(float(len(admitted[part::parts]))))[0])
        for person in admitted if first_token == "encode" else ():
            person.generated, person.first_s, person.last_s = 1, now_s, now_s
        live = [person for person in [*live, *admitted] if person.generated < person.output]
        rows.append(len(live))
        batch = live if decision.compact or not batch else batch
        ended: list[Person] = []
        if live:
            now_s += pipeline.phase_s
        for _ in range(decision.iterations):
            if not live:
                break
            behind = 1 if first_token == "encode" else 0
            computed = live if decision.compact else batch
            context = sum(person.prompt + person.generated - behind for person in computed) / len(computed)
            now_s += float(pipeline.decode_s(np.array(float(len(computed))), np.array(context))[0])
            for person in computed:
                person.generated += 1
            for person in live:
                person.last_s = now_s
                person.first_s = person.first_s or now_s
            ended += [person for person in live if person.generated == person.output]
            live = [person for person in live if person.generated < person.output]
        batch = batch if live else []
        if delivery == "phase":
            for person in ended:
                person.last_s = now_s
    return people, rows
