"""The server's side of TLS: certificate, key and the authority of clients, taken anew from disk when they change.

Each handshake takes what is in force; connections that stand go on. A certificate that is replaced before its key is
not used until both belong together.
"""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path

import grpc

from serving.security.watched_file import WatchedFiles, warn_of_readers


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
      cert: the server's certificate, and behind it those of the authorities between.
      key: its private key.
      client_ca: who may sign clients' certificates; None asks clients for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files. Raises ValueError or OSError if they cannot be used now."""
    watched = WatchedFiles(files.paths, lambda: _read(files))
    first = in_force = watched.get()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_force
        read = watched.get()
        # None leaves gRPC what it has; it does not compare.
        if read is in_force:
            return None
        in_force = read
        return read

    return grpc.dynamic_ssl_server_credentials(first, fetch, files.client_ca is not None)


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Checked as gRPC does not: it fails each handshake instead, and does not say why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert, key = files.cert.read_bytes(), files.key.read_bytes()
    client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    try:
        # Without a password here, OpenSSL would ask the terminal for one.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_cert: {files.cert} and tls_key {files.key} are no certificate and its unencrypted key, in PEM"
            f" ({error.reason or 'unreadable'})"
        ) from None
    warn_of_readers(files.key)
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=files.client_ca)
        except ssl.SSLError:
            raise ValueError(f"tls_client_ca: {files.client_ca} holds no certificate, in PEM") from None
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)
