"""What a server holds when nobody asks any more: rows, bytes, live requests, tasks, descriptors, memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

from serving.proto.exegpt.v1 import admin_pb2, admin_pb2_grpc
from tests.serving.servers import ServerProcess


def left_behind(admin: admin_pb2_grpc.AdminStub) -> dict[str, object]:
    """Whatever a server holds for requests, as its operator sees it; all of it nothing when nobody asks."""
    stats = admin.GetStats(admin_pb2.GetStatsRequest())
    state = json.loads(admin.DumpState(admin_pb2.DumpStateRequest()).state)
    runner = json.loads(stats.runner)
    held = {name: runner[name] for name in ("running", "waiting", "live_bytes")}
    return {**held, "admitted": stats.admitted, "live": state["live"], "tasks": sum(state["tasks"].values())}


def settled(admin: admin_pb2_grpc.AdminStub, quiet: dict[str, object]) -> None:
    """Waits until it is as quiet as that."""
    end_s = time.monotonic() + 60
    while (found := left_behind(admin)) != quiet:
        assert time.monotonic() < end_s, f"left behind: {found}, not {quiet}"
        time.sleep(0.1)


def descriptors(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def resident_bytes(server: ServerProcess) -> int:
    (line,) = (
        line
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    )
    return int(line.split()[1]) * 1024
