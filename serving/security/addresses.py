"""Where a server may listen: on loopback as it likes, elsewhere only encrypted and locked."""

from __future__ import annotations

import ipaddress
import logging

_LOG = logging.getLogger(__name__)


def check_address(address: str, *, encrypted: bool, locked: bool, allow_remote: bool, flag: str = "address") -> None:
    """Raises ValueError for an address that is none, or that others could reach without protection.

    Args:
      address: host:port.
      encrypted: there is TLS.
      locked: callers prove who they are, by key or certificate.
      allow_remote: the operator permits what is missing, which is logged.
      flag: that gave the address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{flag}: {address!r} is not host:port; give for example 127.0.0.1:50051")
    if _is_loopback(host.strip("[]")) or (encrypted and locked):
        return
    missing = " and ".join(
        name
        for name, there in (("encryption (--tls_cert, --tls_key)", encrypted), ("keys (--keys)", locked))
        if not there
    )
    if not allow_remote:
        raise ValueError(
            f"{flag}: {host} is not this machine's loopback, and there is no {missing}; give what is missing,"
            " 127.0.0.1, or permit it with --allow_remote"
        )
    _LOG.warning("%s: %s can be reached from other machines, without %s", flag, address, missing)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
