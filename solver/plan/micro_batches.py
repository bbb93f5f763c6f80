"""Decode micro-batches: a decode batch cut into parts that follow each other through the stages.

A plan has as many parts as its decode batch has micro-batches of B_m rows; more rows than planned make every part
larger, not one more. Slots go to the parts in turns, so that the lowest slots, which new rows take, spread evenly.
"""

from __future__ import annotations

from solver.plan.schedule import Schedule


def decode_parts(schedule: Schedule) -> int:
    """m_D: micro-batches of a decode phase."""
    return -(-schedule.decode_batch // schedule.micro_batch)


def part_rows(rows: int, parts: int) -> int:
    """Rows of each part, when the lowest `rows` slots decode."""
    return -(-rows // parts)


def place_of(slot: int, parts: int) -> tuple[int, int]:
    """The part that a slot belongs to, and its place in it."""
    return slot % parts, slot // parts


def allocated_rows(schedule: Schedule) -> int:
    """Rows that all parts together allocate: every part has as many."""
    parts = decode_parts(schedule)
    return parts * part_rows(schedule.max_rows, parts)
