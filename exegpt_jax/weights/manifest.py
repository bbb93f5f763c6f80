"""What a converted checkpoint says about itself: shapes, tensor degree, and the SHA-256 of every file in it.

    DIR/exegpt_checkpoint.json   the manifest, written last
    DIR/config.json, tokenizer*  copied from the model directory
    DIR/state/                   Orbax's arrays

A directory is written under another name and renamed when complete, so there is no half-written checkpoint; `verify`
refuses one that was truncated or altered later. No jax here: `exegpt check` reads manifests too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from exegpt_jax.weights.digest import file_digests

MANIFEST = "exegpt_checkpoint.json"
STATE = "state"
FORMAT = "exegpt-orbax-1"
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
NOT_COPIED = ("*.index.json", MANIFEST)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One converted checkpoint.

    Attributes:
      dtype: of every parameter.
      tensor: the degree that heads were repeated and the vocabulary padded for.
      layers: [first, end) that it holds.
      source_digest: `checkpoint_digest` of the model directory that it was made from.
      parameters: path -> shape as stored.
      files: path in the directory -> (bytes, SHA-256).
    """

    dtype: str
    tensor: int
    layers: tuple[int, int]
    source_digest: str
    parameters: Mapping[str, tuple[int, ...]]
    files: Mapping[str, tuple[int, str]]


def is_checkpoint(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Seals a directory. Deterministic for given contents."""
    fields = _canonical(dataclasses.asdict(manifest) | {"format": FORMAT})
    sealed = json.loads(fields) | {"digest": hashlib.sha256(fields.encode()).hexdigest()}
    with open(directory / MANIFEST, "w", encoding="utf-8") as file:
        file.write(json.dumps(sealed, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks the manifest itself, not the files. Raises ValueError with one line."""
    path = directory / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        digest = fields.pop("digest")
        named = fields.pop("format")
        if named != FORMAT:
            raise ValueError(f"{path}: format {str(named)[:40]!r} is not read by this version, which reads {FORMAT}")
        if hashlib.sha256(_canonical(fields | {"format": FORMAT}).encode()).hexdigest() != digest:
            raise ValueError(f"{path}: altered: its own digest differs; convert the model again")
        return Manifest(
            dtype=str(fields["dtype"]),
            tensor=int(fields["tensor"]),
            layers=(int(fields["layers"][0]), int(fields["layers"][1])),
            source_digest=str(fields["source_digest"]),
            parameters={str(name): tuple(map(int, shape)) for name, shape in fields["parameters"].items()},
            files={str(name): (int(size), str(digest)) for name, (size, digest) in fields["files"].items()},
        )
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: truncated or altered: not a manifest; convert the model again") from None


def verify(directory: Path) -> Manifest:
    """The manifest of a checkpoint all of whose files are as they were written.

    Raises:
      ValueError: one line naming the first file that is missing, truncated, altered or unlisted.
    """
    manifest = read_manifest(directory)
    for name, (size, _) in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{directory}: {name} is missing; convert the model again")
        if path.stat().st_size != size:
            fault = f"has {path.stat().st_size} bytes instead of {size}: truncated or altered"
            raise ValueError(f"{directory}: {name} {fault}; convert the model again")
    unlisted = sorted(set(_stored(directory)) - set(manifest.files))
    if unlisted:
        raise ValueError(f"{directory}: {unlisted[0]} is not in the manifest; convert the model again")
    found = file_digests(directory, [directory / name for name in manifest.files])
    for name, (_, digest) in manifest.files.items():
        if found[name] != digest:
            raise ValueError(f"{directory}: {name} is altered: its SHA-256 differs; convert the model again")
    return manifest


def seal(directory: Path) -> dict[str, tuple[int, str]]:
    """`Manifest.files` of everything that a directory holds now."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {
        name: ((directory / name).stat().st_size, digest) for name, digest in file_digests(directory, paths).items()
    }


def copy_settings(source: Path, target: Path, dtype: str) -> None:
    """Copies configuration, tokenizer and licence files, not weights; config.json is made to name `dtype`."""
    found = {path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}
    for path in sorted(found):
        if not any(path.match(pattern) for pattern in NOT_COPIED):
            shutil.copyfile(path, target / path.name)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    name = "dtype" if "dtype" in config else "torch_dtype"
    if config.get(name, "float32") != dtype:
        config[name] = dtype
        (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_new(output: Path) -> None:
    """Raises ValueError if `output` exists and is not an empty directory."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"output: {output} exists; name a new directory")


@contextlib.contextmanager
def complete_directory(output: Path) -> Iterator[Path]:
    """A directory to write into that becomes `output` when the block ends well, and vanishes otherwise.

    Raises ValueError if `output` exists and is not an empty directory.
    """
    check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.parent / f".{output.name}.unfinished-{os.getpid()}"
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(output)
        _sync(output.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _canonical(fields: dict[str, object]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _stored(directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in (directory / STATE).rglob("*") if path.is_file()]


def _sync(directory: Path) -> None:
    """Makes a rename in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
