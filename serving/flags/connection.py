"""Flags of the commands that talk to a server: where it is, TLS, and the key.

The key is never on the command line, which every user of the machine can read: it comes from a file, or from the
environment variable EXEGPT_KEY.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from absl import flags

if TYPE_CHECKING:
    from serving.client import Tls

KEY_VARIABLE = "EXEGPT_KEY"
_TLS_FILES = ("tls_ca", "tls_cert", "tls_key")


class Connection(TypedDict):
    """What `Client` and `AsyncClient` take: `Client(**connection(FLAGS))`."""

    address: str
    key: str | None
    tls: Tls | None


def define_connection(values: flags.FlagValues) -> None:
    flags.DEFINE_string("address", "127.0.0.1:50051", "host:port of the server", flag_values=values)
    flags.DEFINE_string(
        "key_file",
        None,
        f"file that holds this client's key; the variable {KEY_VARIABLE} if absent",
        flag_values=values,
    )
    flags.DEFINE_bool("tls", False, "encrypt; implied by each of the flags below", flag_values=values)
    for name, text in (
        ("tls_ca", "PEM file of the authorities that sign servers' certificates; the public ones if absent"),
        ("tls_cert", "PEM file of this client's certificate, where the server asks for one"),
        ("tls_key", "PEM file of the key that belongs to --tls_cert"),
        ("tls_server_name", "the name in the server's certificate, where it is not the address's"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)


def connection(values: flags.FlagValues) -> Connection:
    """Raises ValueError or OSError with one line that names the flag."""
    from serving.client import Tls

    files: dict[str, str | None] = {name: values[name].value for name in _TLS_FILES}
    if (files["tls_cert"] is None) != (files["tls_key"] is None):
        absent = min(name for name in ("tls_cert", "tls_key") if files[name] is None)
        raise ValueError(f"{absent}: not given, but its other half is; give both or neither")
    server_name: str | None = values.tls_server_name
    paths = {name: None if path is None else Path(path) for name, path in files.items()}
    wanted = values.tls or server_name is not None or any(paths.values())
    tls = Tls(paths["tls_ca"], paths["tls_cert"], paths["tls_key"], server_name) if wanted else None
    return Connection(address=values.address, key=_key(values.key_file), tls=tls)


def _key(path: str | None) -> str | None:
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    text = Path(path).read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"key_file: {path} is empty; it holds one key")
    return text
