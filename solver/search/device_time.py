"""A bound that is there at once: device time. However phases are scheduled, every request costs its share of it.

A prompt takes at least the least time per prompt of any batch, an iteration at least the least time per row of any
batch, times the devices that are busy with it; all devices together have one second a second. It knows neither bounds
on latency nor memory, so it is loose, but it stands where a limit on time ended the search before a better one.
"""

from __future__ import annotations

import numpy as np

from solver.facts.workload import Floats
from solver.search.setting import Setting
from solver.simulate.costs import UnitCosts

# Rows beyond the last rung of compiled shapes are rare (`overflow`), but then cost no more than the rung does.
_SLACK = 1.01


def device_time_rps(setting: Setting) -> float:
    """Requests per second that no schedule of any policy exceeds."""
    encode, decode = 0.0, 0.0
    both = 0.0
    mean_decode = setting.lengths.mean_decode
    for pool in setting.pools:
        units = [setting.units[pool.kind, degree] for degree in setting.degrees(pool)]
        encode_s = min(_least(unit, unit.encode_s) for unit in units) * setting.layers
        decode_s = min(_least(unit, unit.decode_s.min(axis=0)) for unit in units) * setting.layers * mean_decode
        encode += pool.devices / encode_s
        decode += pool.devices / max(decode_s, 1e-300)
        both += pool.devices / (encode_s + decode_s)
    # Kinds may share the phases to their advantage, so several are bounded by each phase alone.
    return _SLACK * (both if len(setting.pools) == 1 else min(encode, decode))


def _least(unit: UnitCosts, seconds: Floats) -> float:
    """Device seconds per row, at the best number of rows; between whole rows the share lies between theirs."""
    return float((unit.tensor * seconds[1:] / np.arange(1, len(seconds))).min())
