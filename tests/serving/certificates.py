"""Certificates for tests, made with the openssl command: an authority, and what it signs."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest


@dataclasses.dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates into a directory. Skips the test where there is no openssl."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl here to make certificates with")
        self._directory = directory
        self.cert, self._key = directory / f"{name}.crt", directory / f"{name}.key"
        _openssl(
            *("req", "-x509", "-days", "2", "-subj", f"/CN={name}", *_new_key(self._key)),
            *("-out", str(self.cert), "-addext", "basicConstraints=critical,CA:TRUE"),
        )

    def sign(self, name: str, alternative_names: str = "IP:127.0.0.1,DNS:localhost") -> Certificate:
        request, extensions = (self._directory / f"{name}.{end}" for end in ("csr", "ext"))
        made = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        extensions.write_text(f"subjectAltName={alternative_names}\n")
        _openssl("req", "-subj", f"/CN={name}", *_new_key(made.key), "-out", str(request))
        _openssl(
            *("x509", "-req", "-days", "2", "-in", str(request), "-CA", str(self.cert), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-extfile", str(extensions), "-out", str(made.cert)),
        )
        return made


def _new_key(path: Path) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
