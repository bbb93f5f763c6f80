"""A stage's mesh: its own devices under the axes ("data", "tensor").

The data axis is 1 inside a stage (replicas are further copies of the stages), so the shape is (1, tensor degree).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of shape (1, len(devices)), one device per tensor rank, in the order given."""
    if not devices:
        raise ValueError("devices: none given; a stage needs at least one")
    if len(set(devices)) != len(devices):
        raise ValueError("devices: one stands twice; give each tensor rank its own")
    return Mesh(np.array(devices, dtype=object).reshape(1, -1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
