"""The splits of WAA that the paper knows: encode devices by computation (WAA-C) or by memory (WAA-M).

The free split leaves it to the solver how many devices each side has; these fix it beforehand, as shares of every pool,
and are kept as baselines. A share is rounded to what the offered degrees can use, and neither side is left empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from solver.plan.schedule import Role
from solver.search.placement.patterns import Load, MemoryNeed, load_times, stage_bytes
from solver.search.placement.pools import Pool
from solver.simulate.costs import UnitCosts


def computation_share(
    units: Mapping[tuple[str, int], UnitCosts], kind: str, encode: Load, decode: Load, mean_decode: float
) -> float:
    """WAA-C: the share of a request's device time that encoding takes, per layer at the smallest degree."""
    tensor = min(degree for name, degree in units if name == kind)
    unit = units[kind, tensor]
    encode_s = load_times(unit, encode).layer_s / encode.rows
    decode_s = mean_decode * load_times(unit, decode).layer_s / decode.rows
    return encode_s / (encode_s + decode_s)


def memory_share(
    units: Mapping[tuple[str, int], UnitCosts], kind: str, layers: int, needs: Mapping[Role, MemoryNeed]
) -> float:
    """WAA-M: the share of all bytes, both copies of the weights among them, that the encode side holds."""
    unit = units[kind, min(degree for name, degree in units if name == kind)]
    encode, decode = (stage_bytes(unit, layers, "both", needs[role]) for role in ("encode", "decode"))
    return encode / (encode + decode)


def fixed_split(
    pools: Sequence[Pool], shares: Sequence[float], degrees: Mapping[str, Sequence[int]]
) -> tuple[tuple[Role, int, int], ...]:
    """`role_devices` that give each pool's share to encode and the rest to decode.

    Args:
      pools: of the cluster.
      shares: of each pool, for encode.
      degrees: offered per kind; a side gets a multiple of the largest that leaves the share within half of it, so
        that a whole island's degree is kept where there are several islands.

    Raises:
      ValueError: a pool has a single device, which cannot do both.
    """
    found: list[tuple[Role, int, int]] = []
    for index, (pool, share) in enumerate(zip(pools, shares, strict=True)):
        if pool.devices < 2:
            raise ValueError(f"waa: {pool.kind}: 1 device cannot be split into encode and decode; use rra")
        usable = [degree for degree in degrees[pool.kind] if degree <= min(share, 1 - share) * pool.devices]
        step = max(usable, default=min(degrees[pool.kind]))
        encode = max(step, min(pool.devices - step, round(share * pool.devices / step) * step))
        found += [("encode", index, encode), ("decode", index, pool.devices - encode)]
    return tuple(found)
