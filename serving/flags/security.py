"""Flags of the server's locks: TLS, clients' certificates, keys, and a port for probes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from serving.security.tls import TlsFiles


def define_security(values: flags.FlagValues) -> None:
    for name, text in (
        ("tls_cert", "PEM file of the server's certificate; with --tls_key it makes the server encrypt"),
        ("tls_key", "PEM file of the key that belongs to --tls_cert"),
        ("tls_client_ca", "PEM file of who signs clients' certificates; others are turned away"),
        ("keys", "file of keys, one a line as NAME KIND KEY; who presents none of them is refused"),
        ("health_address", "a second host:port for probes: health checks only, without TLS and keys"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_integer(
        "key_limit",
        None,
        "calls, and requests, of one key under way; more are refused. --max_requests if absent",
        1,
        flag_values=values,
    )


def tls_files(values: flags.FlagValues) -> TlsFiles | None:
    """Raises ValueError that names the flag which is missing."""
    from serving.security.tls import TlsFiles

    names = ("tls_cert", "tls_key", "tls_client_ca")
    given: list[str | None] = [values[name].value for name in names]
    cert, key, client_ca = (None if path is None else Path(path) for path in given)
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        absent = "tls_cert" if cert is None else "tls_key"
        raise ValueError(f"{absent}: not given, but another flag of TLS is; give certificate and key")
    return TlsFiles(cert, key, client_ca)
