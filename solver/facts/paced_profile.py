"""A profile corrected by what a run showed: on a machine that also serves, calls take longer than alone."""

from __future__ import annotations

import dataclasses

from solver.facts.profile import EndTimes, LayerTimes, Profile, Table


def paced(profile: Profile, pace: float, spread: float, why: str) -> Profile:
    """The profile with all its times multiplied.

    Args:
      profile: as it was measured.
      pace: measured over predicted time.
      spread: of the run's phases; replaces the profile's where it is larger.
      why: for the source line.

    Raises:
      ValueError: a pace that is no number above 0.
    """
    if not 0 < pace < float("inf"):
        raise ValueError(f"pace: {pace} is not a number above 0")
    return dataclasses.replace(
        profile,
        source=f"{profile.source}; {why}",
        dispatch_s=profile.dispatch_s * pace,
        phase_s=profile.phase_s * pace,
        stage_dispatch_s=None if profile.stage_dispatch_s is None else profile.stage_dispatch_s * pace,
        spread=max(profile.spread, spread),
        layers=tuple(_layer(times, pace) for times in profile.layers),
        ends=tuple(_end(times, pace) for times in profile.ends),
    )


def _layer(times: LayerTimes, pace: float) -> LayerTimes:
    return dataclasses.replace(times, encode=_table(times.encode, pace), decode=_table(times.decode, pace))


def _end(times: EndTimes, pace: float) -> EndTimes:
    return dataclasses.replace(times, embed=_table(times.embed, pace), head=_table(times.head, pace))


def _table(table: Table, pace: float) -> Table:
    return dataclasses.replace(table, seconds=table.seconds * pace)
