"""The file of a Profile: strict, versioned JSON, packed with gzip where the name ends in .gz, and the hashes around it.

The profiler and the importers write it, the planner reads it. Whatever is wrong with a file (cut short, a time that is
negative or no number, a grid of another size) is one line that names file and field; a profile of another model,
device or dtype is refused where it is to be used. Profiles that ship are found by those three in `configs/profiles`.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np

from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.presets import CONFIGS
from solver.facts.profile import SCHEMA_VERSION, EndTimes, LayerTimes, Mark, Profile, Table
from solver.facts.profile_check import check_profile, version_line
from solver.facts.workload import Floats
from solver.plan import strict_json

# Fields of a ModelSpec that change how long a layer or an end takes. Names, the number of layers, the longest context
# and the kind of rope do not.
_TIMED_FIELDS = (
    *("vocab_size", "hidden_size", "mlp_size", "heads", "kv_heads", "head_dim", "norm", "activation", "gated_mlp"),
    *("qkv_bias", "output_bias", "mlp_bias", "qk_norm"),
)
_DIGEST_IN_NAME = 12
_HALF = {"float16": "bfloat16", "bfloat16": "float16"}


@dataclasses.dataclass(frozen=True)
class _TableFile:
    first: tuple[float, ...]
    second: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]
    marks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _LayerFile:
    tensor: int
    kind: LayerKind
    encode: _TableFile
    decode: _TableFile


@dataclasses.dataclass(frozen=True)
class _EndFile:
    tensor: int
    embed: _TableFile
    head: _TableFile


@dataclasses.dataclass(frozen=True)
class _ProfileFile:
    """The fields of `Profile` in the order of the file; what was not measured does not stand there."""

    schema_version: int
    model: str
    shape: str
    dtype: str
    cache_dtype: str
    device_kind: str
    source: str
    dispatch_s: float
    phase_s: float
    padded: bool
    spread: float
    ends: tuple[_EndFile, ...]
    layers: tuple[_LayerFile, ...]
    stage_dispatch_s: float | None = None


def shape_digest(spec: ModelSpec) -> str:
    """Hash of the shapes that times of layers and ends depend on: equal for models that one profile serves."""
    shapes: dict[str, object] = {name: getattr(spec, name) for name in _TIMED_FIELDS}
    shapes["rotary"] = spec.rope is not None
    shapes["kinds"] = sorted({json.dumps(dataclasses.asdict(run.kind), sort_keys=True) for run in spec.layers})
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()


def digest(profile: Profile) -> str:
    """Hash of every field; equal for equal profiles, however their files are packed."""
    return hashlib.sha256(to_text(profile).encode()).hexdigest()


def to_text(profile: Profile) -> str:
    """The file's JSON: one line per field, one per layer and end. Floats are written so that they read back equal."""
    record = dataclasses.asdict(_file_of(profile))
    lines = []
    for name, value in record.items():
        if name in ("ends", "layers"):
            entries = ",\n".join("  " + json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in value)
            lines.append(f' "{name}": [\n{entries}\n ]')
        elif value is not None:
            lines.append(f' "{name}": {json.dumps(value, allow_nan=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_profile(profile: Profile, path: Path) -> None:
    """Writes the file whole or not at all. Raises ValueError where the profile could not be read back."""
    check_profile(profile, f"profile {path}")
    data = to_text(profile).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def read_profile(path: Path) -> Profile:
    """Raises ValueError with one line that names the file and the field; OSError where there is no such file."""
    what = f"profile {path}"
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{what}: is cut short or no profile ({error}); write it again") from None
    _check_version(text, what)
    record = strict_json.from_json(_ProfileFile, text, what)
    profile = Profile(
        model=record.model,
        shape=record.shape,
        dtype=record.dtype,
        cache_dtype=record.cache_dtype,
        device_kind=record.device_kind,
        source=record.source,
        layers=tuple(
            LayerTimes(
                entry.tensor,
                entry.kind,
                _table(entry.encode, f"{what}.layers[{i}].encode"),
                _table(entry.decode, f"{what}.layers[{i}].decode"),
            )
            for i, entry in enumerate(record.layers)
        ),
        ends=tuple(
            EndTimes(
                entry.tensor,
                _table(entry.embed, f"{what}.ends[{i}].embed"),
                _table(entry.head, f"{what}.ends[{i}].head"),
            )
            for i, entry in enumerate(record.ends)
        ),
        dispatch_s=record.dispatch_s,
        phase_s=record.phase_s,
        padded=record.padded,
        spread=record.spread,
        stage_dispatch_s=record.stage_dispatch_s,
        schema_version=record.schema_version,
    )
    check_profile(profile, what)
    return profile


def check_fits(profile: Profile, spec: ModelSpec, device_kind: str, dtype: str) -> None:
    """Raises ValueError with one line unless the profile was taken of this model, on this device, in this dtype."""
    name = f"profile of {profile.model} on {profile.device_kind}"
    if profile.shape != shape_digest(spec):
        raise ValueError(
            f"{name}: of another model (shapes {profile.shape[:_DIGEST_IN_NAME]}, this one has "
            f"{shape_digest(spec)[:_DIGEST_IN_NAME]}); profile this model"
        )
    kinds = {run.kind for run in spec.layers}
    missing = [k for k in kinds for t in profile.tensor_degrees if (t, k) not in {_key(x) for x in profile.layers}]
    if missing:
        raise ValueError(f"{name}: no times for layer kind {missing[0]}; profile this model")
    if profile.device_kind != device_kind:
        raise ValueError(f"{name}: device kind {profile.device_kind}, not {device_kind}; profile that device")
    if profile.dtype != dtype:
        raise ValueError(f"{name}: dtype {profile.dtype}, not {dtype}; profile that dtype")


def shipped_name(model: str, shape: str, device_kind: str, dtype: str) -> str:
    """Name of a shipped profile's file: for people first, then what it is found by."""
    return f"{model}.{device_kind}.{dtype}.{shape[:_DIGEST_IN_NAME]}.json.gz"


def find_profile(spec: ModelSpec, device_kind: str, dtype: str, folder: Path = CONFIGS / "profiles") -> Profile:
    """The shipped profile of these shapes on that device.

    Shipped profiles are composed from tables in which the two 16-bit floats stand together, since the tensor cores of
    these devices run both at one rate; so either is found under the other's name, and the source then says so.

    Raises:
      ValueError: there is none; the line names the command that builds one.
    """
    shape = shape_digest(spec)
    for stored in (dtype, _HALF.get(dtype)):
        if stored is None:
            continue
        for path in sorted(folder.glob(shipped_name("*", shape, device_kind, stored))):
            profile = read_profile(path)
            if stored != dtype:
                source = f"{profile.source}; {dtype} taken to be as fast as {stored}"
                profile = dataclasses.replace(profile, dtype=dtype, cache_dtype=dtype, source=source)
            check_fits(profile, spec, device_kind, dtype)
            return profile
    raise ValueError(
        f"profile: none ships for these shapes on {device_kind} in {dtype}; on such a device run exegpt profile "
        "--model=DIR --output=FILE, elsewhere try exegpt profile --model=DIR --from_tables "
        f"--device_kind={device_kind} --dtype={dtype} --output=FILE, then give --profile=FILE"
    )


def _key(times: LayerTimes) -> tuple[int, LayerKind]:
    return times.tensor, times.kind


def _check_version(text: str, what: str) -> None:
    """A file of another version says so first, whatever its fields are."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: is cut short or no JSON ({error}); write it again") from None
    version = data.get("schema_version", "missing") if isinstance(data, dict) else "missing"
    if version != SCHEMA_VERSION:
        raise ValueError(version_line(what, version))


def _file_of(profile: Profile) -> _ProfileFile:
    values = {field.name: getattr(profile, field.name) for field in dataclasses.fields(_ProfileFile)}
    values["layers"] = tuple(
        _LayerFile(x.tensor, x.kind, _table_file(x.encode), _table_file(x.decode)) for x in profile.layers
    )
    values["ends"] = tuple(_EndFile(x.tensor, _table_file(x.embed), _table_file(x.head)) for x in profile.ends)
    return _ProfileFile(**values)


def _table_file(table: Table) -> _TableFile:
    return _TableFile(
        tuple(map(_number, table.first)),
        tuple(map(_number, table.second)),
        tuple(tuple(map(float, row)) for row in table.seconds),
        tuple("".join(str(int(mark)) for mark in row) for row in table.marks),
    )


def _number(size: float) -> float:
    """Sizes are whole, as a rule; "16" is shorter than "16.0"."""
    return int(size) if float(size).is_integer() else float(size)


def _table(record: _TableFile, what: str) -> Table:
    shape = (len(record.first), len(record.second))
    widths = {len(row) for row in record.seconds}
    if (len(record.seconds), *widths) != shape:
        raise ValueError(f"{what}.seconds: {len(record.seconds)} rows of {sorted(widths)} where {shape} belong")
    if len(record.marks) != shape[0] or {len(row) for row in record.marks} != {shape[1]}:
        raise ValueError(f"{what}.marks: not one digit for each of {shape} times")
    known = {str(int(mark)) for mark in Mark}
    strange = sorted(set("".join(record.marks)) - known)
    if strange:
        raise ValueError(f"{what}.marks: {strange[0]!r} is none of {', '.join(sorted(known))}")
    marks = np.array([[int(mark) for mark in row] for row in record.marks], np.uint8)
    return Table(_floats(record.first), _floats(record.second), np.array(record.seconds, np.float64), marks)


def _floats(values: tuple[float, ...]) -> Floats:
    return np.array(values, np.float64)
