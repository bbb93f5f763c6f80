"""How a client reaches a server: in the clear or over TLS, with a key or without."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import grpc

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),
)
# The server says when to try again (`grpc-retry-pushback-ms`); where it does not, these times grow. gRPC makes no more
# than 5 attempts, and none behind the first message of an answer.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "exegpt.v1.Generation", "method": "Generate"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


@dataclasses.dataclass(frozen=True)
class Tls:
    """What a client needs for TLS; every file is PEM.

    Attributes:
      ca: the authorities that may have signed the server's certificate; None trusts those of gRPC.
      cert, key: the client's own certificate and key, where the server asks for one (mTLS).
      server_name: the name that the server's certificate must have, where it is not the address's.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ValueError for half a pair, OSError for a file that cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls: a client's certificate and its key come together; give both or neither")
        ca, key, cert = (None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


def options_of(tls: Tls | None, *, retries: bool) -> tuple[tuple[str, int | str], ...]:
    """A channel's options."""
    options: tuple[tuple[str, int | str], ...] = (*OPTIONS, ("grpc.enable_retries", int(retries)))
    if retries:
        options = (*options, ("grpc.service_config", _SERVICE_CONFIG))
    if tls is not None and tls.server_name is not None:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return options


def metadata_of(key: str | None) -> tuple[tuple[str, str], ...]:
    """What every call carries. Raises ValueError for a key that no header can carry; it is not shown."""
    if key is None:
        return ()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("key: is not one word of printable ASCII characters; give the key itself")
    return (("authorization", f"Bearer {key}"),)
