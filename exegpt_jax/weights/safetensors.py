"""Strict reader and writer of one safetensors file: numpy only, no jax, no mapping into memory.

The file is 8 bytes of header length, a JSON header, then raw row-major arrays. Everything in the header is checked
before an array is touched: a damaged or hostile file raises a ValueError of one line, whatever its bytes are. Blocks
are read with `pread` through a small scratch buffer, so a slice of a tensor costs the slice and not the tensor.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

import ml_dtypes
import numpy as np

MAX_HEADER_BYTES = 100_000_000
SCRATCH_BYTES = 4 << 20
# Below a page, reading whole rows costs the disk no more than reading pieces of them.
PIECE_BYTES = 4096

FLOATS: dict[str, np.dtype] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
}
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_ITEM_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one array lies in its file.

    Attributes:
      dtype: the format's name, e.g. "BF16".
      shape: row-major.
      begin, end: bytes from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(header: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    """The arrays that a header describes, checked against the length of the file.

    Args:
      header: the JSON text, without the 8 bytes of length before it.
      file_bytes: length of the whole file.

    Raises:
      ValueError: one line saying what is wrong.
    """
    try:
        fields = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("header nests too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"header is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"header is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(fields, dict):
        raise ValueError("header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("header: __metadata__ is not a map of strings to strings")
    start = 8 + len(header)
    infos = {name: _tensor_info(name, field, start) for name, field in fields.items()}
    position = start
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            fault = "overlaps the one before it" if info.begin < position else "leaves a hole before it"
            raise ValueError(f"tensor {_short(name)} {fault}")
        position = info.end
    if position != file_bytes:
        fault = "truncated" if position > file_bytes else "longer than its header says"
        raise ValueError(f"file is {fault}: {file_bytes} bytes, the header describes {position}")
    return infos


class SafetensorsFile:
    """One open file; use as a context manager.

    Attributes:
      path: of the file.
      tensors: name -> where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self.tensors = self._read_header()
        except ValueError as error:
            os.close(self._fd)
            raise ValueError(f"{path}: {error}") from None

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads one slice of a float tensor.

        Args:
          name: the tensor, of one or two dimensions.
          index: one slice per dimension with start and stop inside it, step 1.

        Returns:
          The slice, in the dtype of the file.
        """
        info = self.tensors[name]
        dtype = FLOATS[info.dtype]
        width = info.shape[1] if len(info.shape) == 2 else 1
        rows, columns = (*index, slice(0, 1))[:2]
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), dtype)
        start = info.begin + rows.start * width * dtype.itemsize
        if out.shape[1] == width:
            self._fill(out, start)
        elif out.shape[1] * dtype.itemsize >= PIECE_BYTES:
            for row, line in enumerate(out):
                self._fill(line, start + (row * width + columns.start) * dtype.itemsize)
        else:
            step = max(1, SCRATCH_BYTES // (width * dtype.itemsize))
            for row in range(0, len(out), step):
                whole = np.empty((min(step, len(out) - row), width), dtype)
                self._fill(whole, start + row * width * dtype.itemsize)
                out[row : row + step] = whole[:, columns]
        return out if len(info.shape) == 2 else out[:, 0]

    def _read_header(self) -> dict[str, TensorInfo]:
        file_bytes = os.fstat(self._fd).st_size
        prefix = os.pread(self._fd, 8, 0)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > file_bytes - 8:
            raise ValueError(f"truncated: {file_bytes} bytes do not hold the header")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"header of {length} bytes exceeds the limit of {MAX_HEADER_BYTES}")
        header = np.empty(length, np.uint8)
        self._fill(header, 8)
        return parse_header(header.tobytes(), file_bytes)

    def _fill(self, target: np.ndarray, offset: int) -> None:
        view = target.reshape(-1).view(np.uint8).data
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise ValueError(f"{self.path}: ended at byte {offset} while it was read; was it replaced?")
            view = view[count:]
            offset += count


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Writes one file, holding one array at a time.

    Args:
      path: of the file.
      tensors: name -> (dtype name as in FLOATS, shape), in the order of the file.
      read: name -> the array.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * FLOATS[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in tensors.items():
            array = np.ascontiguousarray(read(name))
            if array.shape != shape or array.dtype != FLOATS[dtype]:
                raise ValueError(f"{path}: {name} is {array.dtype}{list(array.shape)}, announced {dtype}{list(shape)}")
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    items = list(pairs)
    fields = dict(items)
    if len(fields) != len(items):
        names = sorted(name for name, _ in items)
        twice = next(name for name, after in itertools.pairwise(names) if name == after)
        raise ValueError(f"header names {_short(twice)} twice")
    return fields


def _no_constant(text: str) -> object:
    raise ValueError(f"header holds {text}")


def _short(name: str) -> str:
    """A name from a file, fit for one line of an error."""
    return repr(name if len(name) <= 120 else name[:117] + "...")


def _tensor_info(name: str, field: object, start: int) -> TensorInfo:
    label = f"tensor {_short(name)}"
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{label} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{label}: dtype {_short(dtype) if isinstance(dtype, str) else 'field'} is unknown")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{label}: shape and data_offsets are not lists of sizes")
    begin, end = offsets
    if end < begin or end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"{label}: data_offsets do not span its dtype and shape")
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )
