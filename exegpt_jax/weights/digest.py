"""SHA-256 of checkpoint files: what was loaded is recorded, what was stored is verified. Nothing is cached."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Iterable
from pathlib import Path

# Everything in a model directory that decides which tokens come out.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def file_digest(path: Path) -> str:
    """SHA-256 of one file in hex. Raises ValueError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def file_digests(directory: Path, files: Iterable[Path]) -> dict[str, str]:
    """Path relative to `directory`, with forward slashes, -> SHA-256; files are read in parallel."""
    ordered = sorted(files)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = pool.map(file_digest, ordered)
        return {path.relative_to(directory).as_posix(): digest for path, digest in zip(ordered, digests, strict=True)}


def model_files(directory: Path) -> tuple[Path, ...]:
    """Configuration, tokenizer and weight files of a model directory, sorted."""
    found = {path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    return tuple(sorted(found))


def checkpoint_digest(directory: Path) -> str:
    """One SHA-256 over the names and contents of a model directory's files.

    A converted checkpoint is known by its manifest, which holds the digest of every array file. Raises ValueError if
    the directory holds no model files.
    """
    files = model_files(directory)
    if not files:
        raise ValueError(f"{directory}: holds no model files; give a directory with config.json and weights")
    total = hashlib.sha256()
    for name, digest in file_digests(directory, files).items():
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()
