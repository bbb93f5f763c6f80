"""The safetensors of a model directory, one file or many, as one set of named arrays."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from exegpt_jax.weights.safetensors import SafetensorsFile, TensorInfo

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMED = 3


def has_safetensors(directory: Path) -> bool:
    return (directory / SINGLE).is_file() or (directory / INDEX).is_file()


@contextlib.contextmanager
def open_checkpoint(directory: Path) -> Iterator[dict[str, SafetensorsFile]]:
    """Tensor name -> the open file that holds it.

    Raises:
      ValueError: one line; no weights, a damaged file, or an index that disagrees with its files.
    """
    with contextlib.ExitStack() as stack:
        if (directory / INDEX).is_file():
            index = read_index(directory / INDEX)
            names = sorted(set(index.values()))
            files = {name: stack.enter_context(SafetensorsFile(directory / name)) for name in names}
            yield _agreed(directory / INDEX, index, files)
        elif (directory / SINGLE).is_file():
            file = stack.enter_context(SafetensorsFile(directory / SINGLE))
            yield dict.fromkeys(file.tensors, file)
        else:
            raise ValueError(f"{directory}: holds no weights; expected {SINGLE} or {INDEX} (nothing else is read)")


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name in the same directory, from `model.safetensors.index.json`."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        weight_map = fields["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: is not a JSON object with a weight_map") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: weight_map is not a map of tensor names to file names")
    for file in weight_map.values():
        if not isinstance(file, str) or "\0" in file or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{path}: weight_map names {str(file)[:80]!r}, which is no safetensors file beside it")
    return weight_map


def check_tensors(
    where: Path,
    found: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool],
) -> None:
    """Compares names and shapes.

    Args:
      where: the checkpoint, for the message.
      found: what it holds.
      expected: name -> shape that the model reads.
      ignored: names that may stand in the checkpoint though nothing reads them.

    Raises:
      ValueError: one line naming the first few missing, unexpected and mis-shaped tensors, with counts.
    """
    misshaped = [
        f"{name} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name[:120] for name in found if name not in expected and not ignored(name)],
        "mis-shaped": misshaped,
    }
    parts = [f"{len(names)} {fault}: {_first(names)}" for fault, names in faults.items() if names]
    if parts:
        raise ValueError(f"{where}: tensors do not fit config.json: {'; '.join(parts)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _agreed(where: Path, index: dict[str, str], files: dict[str, SafetensorsFile]) -> dict[str, SafetensorsFile]:
    absent = [name for name, file in index.items() if name not in files[file].tensors]
    if absent:
        raise ValueError(f"{where}: names {len(absent)} tensors that are not in their files: {_first(absent)}")
    holders = {name: file for file in files.values() for name in file.tensors}
    unlisted = [name for name in holders if name not in index]
    if unlisted:
        raise ValueError(f"{where}: does not name {len(unlisted)} tensors of its files: {_first(unlisted)}")
    return {name: files[file] for name, file in index.items()}
