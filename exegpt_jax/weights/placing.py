"""Arrays onto a mesh and back, one device's slice at a time, so that the host never holds more than one slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

# XLA's CPU backend takes a host buffer over without a copy if it is aligned so.
ALIGNMENT_BYTES = 64

Index = tuple[slice, ...]


def place(
    shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding, read: Callable[[Index, np.ndarray], None]
) -> jax.Array:
    """Builds an array on the sharding's devices from its slices.

    Args:
      shape: of the whole array.
      dtype: of its elements.
      sharding: where it shall lie.
      read: fills a host buffer with the slice that the index names (start and stop are always given).

    Returns:
      The array, ready.
    """
    shards: dict[jax.Device, jax.Array] = {}
    for index, devices in _by_slice(sharding.addressable_devices_indices_map(shape), shape):
        buffer = _aligned(tuple(part.stop - part.start for part in index), dtype)
        read(index, buffer)
        for device in devices:
            shards[device] = jax.device_put(buffer, device)
            # The next slice is read only when this one has left the host.
            shards[device].block_until_ready()
    return jax.make_array_from_single_device_arrays(shape, sharding, list(shards.values()))


def slices(array: jax.Array) -> Iterator[tuple[Index, np.ndarray]]:
    """The distinct slices of an array, each once, as host arrays. Raises ValueError if another process holds some."""
    if not array.is_fully_addressable:
        raise ValueError("weights: some lie on devices of another process; write them from one process")
    taken = set()
    for shard in array.addressable_shards:
        index = _explicit(shard.index, array.shape)
        key = tuple((part.start, part.stop) for part in index)
        if key not in taken:
            taken.add(key)
            yield index, np.asarray(shard.data)


def _by_slice(
    indices: Mapping[jax.Device, Index | None], shape: tuple[int, ...]
) -> list[tuple[Index, list[jax.Device]]]:
    """Devices that hold the same slice, together."""
    groups: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in indices.items():
        key = tuple((part.start, part.stop) for part in _explicit(index or (), shape))
        groups.setdefault(key, []).append(device)
    return [(tuple(slice(start, stop) for start, stop in key), devices) for key, devices in groups.items()]


def _explicit(index: Index, shape: tuple[int, ...]) -> Index:
    full = (*index, *(slice(None) for _ in range(len(shape) - len(index))))
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(full, shape, strict=True))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[offset : offset + size_bytes].view(dtype).reshape(shape)
