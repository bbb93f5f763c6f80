"""The safetensors of a model directory, one file or many, as one set of named arrays."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from exegpt_jax.models import families
from exegpt_jax.models.families.table import source_shape
from exegpt_jax.weights.safetensors import FLOATS, SafetensorsFile, TensorInfo
from solver.facts.model_spec import ModelSpec
from solver.facts.parameters import parameters

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


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of everything that a full checkpoint of the model holds."""
    weights = families.table(spec)
    expected = {}
    for parameter in parameters(spec, (0, spec.num_layers), tensor=1):
        weight = weights.weight(parameter.path)
        expected[weight.name] = source_shape(weight, parameter.shape)
    return expected


def check_tensors(where: Path, spec: ModelSpec, found: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Compares a checkpoint's names, shapes and dtypes with what the model reads.

    Args:
      where: the checkpoint, for the message.
      spec: the model.
      found: what the checkpoint holds, under names with or without the prefix that bare models leave out.

    Returns:
      Name of a full checkpoint -> name in this one.

    Raises:
      ValueError: one line naming the first few missing, unexpected and unfit tensors, with counts.
    """
    weights = families.table(spec)
    expected = expected_tensors(spec)
    names = {weights.full_name(name): name for name in found}
    read = {name: found[names[name]] for name in expected if name in names}
    faults = {
        "missing": [name for name in expected if name not in names],
        "unexpected": [name[:120] for name in names if name not in expected and not weights.is_ignored(name)],
        "mis-shaped": [
            f"{name} is {list(info.shape)}, expected {list(expected[name])}"
            for name, info in read.items()
            if info.shape != expected[name]
        ],
        "of a dtype that is not read": [
            f"{name} is {info.dtype}, expected {', '.join(FLOATS)}"
            for name, info in read.items()
            if info.dtype not in FLOATS
        ],
    }
    parts = [f"{len(named)} {fault}: {_first(named)}" for fault, named in faults.items() if named]
    if parts:
        raise ValueError(f"{where}: tensors do not fit config.json: {'; '.join(parts)}")
    return {name: names[name] for name in expected}


def common_dtype(infos: Iterable[TensorInfo]) -> str:
    """The narrowest dtype that holds all of these float tensors exactly."""
    dtypes = {FLOATS[info.dtype].name for info in infos}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


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
