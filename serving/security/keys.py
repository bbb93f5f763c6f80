"""Who may call: a file of keys, one a line, that is read again when it changes.

    # name    kind     the key, or its digest
    gateway   client   sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    grafana   monitor  d3b07384d113edec49eaa6238ad5ff00

Only digests are kept, plain keys too; what a caller presents is hashed and compared with every one of them, so that
the time taken tells nothing about any.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from pathlib import Path
from typing import Literal, get_args

from serving.security.watched_file import WatchedFiles, warn_of_readers

Kind = Literal["client", "monitor"]
KINDS: tuple[str, ...] = get_args(Kind)
MIN_KEY_CHARACTERS = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SCHEME = "bearer "


@dataclasses.dataclass(frozen=True)
class Key:
    """One line of the file.

    Attributes:
      name: for logs and limits; several lines may share it, while a key is being exchanged.
      kind: what it opens.
      digest: SHA-256 of the key.
    """

    name: str
    kind: Kind
    digest: bytes


class Keyring:
    """The keys in force. Raises ValueError or OSError if the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self._keys = WatchedFiles([path], lambda: _read(path))

    def reload(self) -> None:
        """Looks at the file now."""
        self._keys.get(now=True)

    def find(self, authorization: str) -> Key | None:
        """The key of an `authorization` header, or None."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        digest = hashlib.sha256(authorization[len(_SCHEME) :].encode()).digest()
        found = None
        for key in self._keys.get():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _read(path: Path) -> tuple[Key, ...]:
    keys = parse_keys(path.read_text(encoding="utf-8"))
    warn_of_readers(path)
    return keys


def parse_keys(text: str) -> tuple[Key, ...]:
    """The keys of a file. Raises ValueError that names the line, never the key."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            keys.append(_parse(words))
        except ValueError as error:
            raise ValueError(f"keys: line {number}: {error}") from None
    if not keys:
        raise ValueError("keys: the file holds none; give one a line, as: NAME client KEY")
    if len({key.digest for key in keys}) < len(keys):
        raise ValueError("keys: two lines hold the same key; give every name its own")
    return tuple(keys)


def _parse(words: list[str]) -> Key:
    if len(words) != 3:
        raise ValueError(f"has {len(words)} words; give three: NAME KIND KEY")
    name, kind, secret = words
    if not _NAME.fullmatch(name):
        raise ValueError("the name is not 1 to 64 letters, digits or ._-")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r:.20} of {name} is unknown; choose one of {', '.join(KINDS)}")
    kind_: Kind = "client" if kind == "client" else "monitor"
    if secret.startswith("sha256:"):
        if (digest := _DIGEST.fullmatch(secret)) is None:
            raise ValueError(f"the digest of {name} is not sha256: and 64 hexadecimal digits in lower case")
        return Key(name, kind_, bytes.fromhex(digest[1]))
    if len(secret) < MIN_KEY_CHARACTERS or not secret.isascii():
        raise ValueError(f"the key of {name} is not at least {MIN_KEY_CHARACTERS} ASCII characters; draw a longer one")
    return Key(name, kind_, hashlib.sha256(secret.encode()).digest())
