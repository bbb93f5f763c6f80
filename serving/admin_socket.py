"""The server that operators talk to: Admin, channelz and reflection on a unix socket that its owner alone may open.

Who may open the socket may do everything, so there are no keys here and no TLS; the file system says who that is.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import grpc.aio
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_reflection.v1alpha import reflection

from serving.doors.admin import SERVICE_NAME, AdminDoor
from serving.doors.guard import Guard
from serving.proto.exegpt.v1 import admin_pb2_grpc

_MODE = 0o600
# Of `sockaddr_un`, its closing zero left out.
_MOST_PATH_BYTES = 107


def make_admin_server(path: Path, door: AdminDoor) -> grpc.aio.Server:
    """A server on that socket, not started. Raises ValueError where there can be none."""
    place = path.absolute()
    _check(place)
    server = grpc.aio.server(interceptors=[Guard()])
    admin_pb2_grpc.add_AdminServicer_to_server(door, server)
    channelz.add_channelz_servicer(server)
    channelz_name: str = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
    reflection.enable_server_reflection((SERVICE_NAME, channelz_name, reflection.SERVICE_NAME), server)
    # The socket is made with this mode: there is no moment in which others could open it.
    before = os.umask(0o777 & ~_MODE)
    try:
        server.add_insecure_port(f"unix:{place}")
    except RuntimeError as error:
        raise ValueError(f"admin_socket: {path} cannot be bound; may this user write there?") from error
    finally:
        os.umask(before)
    return server


def remove(path: Path) -> None:
    """Behind a server that has stopped."""
    path.unlink(missing_ok=True)


def _check(path: Path) -> None:
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise ValueError(
            f"admin_socket: longer than {_MOST_PATH_BYTES} bytes, which no socket can be; choose a shorter path"
        )
    if not path.parent.is_dir():
        raise ValueError(f"admin_socket: {path.parent} is no directory; make it or choose another")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"admin_socket: {path} is there and no socket; choose another")
    # gRPC would take the path from a living server without a word.
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ValueError(f"admin_socket: another server listens at {path}; stop it or choose another")
