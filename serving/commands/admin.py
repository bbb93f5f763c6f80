"""Asks a running server on this machine, or tells it what to do, over the unix socket that it made (--admin_socket).

  plan              the plan in force, as its file has it; what the traffic changed of its schedule, on standard error
  stats             counts, predicted beside measured, decisions about the traffic
  timeline          what the last --seconds did, as a Chrome trace (ui.perfetto.dev opens it)
  state             requests on the way and where every thread stands
  replan            asks for a plan for the traffic seen, under --latency_bound_s if that is given
  drain             refuses what is new, answers what was admitted, ends the server
  profile           captures what the devices do for --seconds, into the directory that the server was started with
  channelz          the server's sockets and their counts

Everything is JSON on standard output, or in the file of --output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    import grpc

    from serving.proto.exegpt.v1.admin_pb2_grpc import AdminStub

FLAGS = flags.FlagValues()
flags.DEFINE_string("admin_socket", None, "path of the server's socket", flag_values=FLAGS)
flags.DEFINE_string("output", "-", "file to write, or - for standard output", flag_values=FLAGS)
flags.DEFINE_float("seconds", None, "timeline: the last so many (60); profile: for so long (3)", flag_values=FLAGS)
flags.DEFINE_float("latency_bound_s", None, "replan: bound on latency from then on", flag_values=FLAGS)
flags.DEFINE_float("timeout_s", 30.0, "how long to wait for an answer", 0.1, flag_values=FLAGS)

_PROFILE_S = 3.0
# Below what ends a capture by itself.
_MOST_PROFILE_S = 50.0


def main(argv: list[str]) -> int:
    verbs = argv[1:]
    if len(verbs) != 1 or verbs[0] not in VERBS:
        given = " ".join(verbs) or "nothing"
        raise ValueError(f"arguments: {given} is not one of {', '.join(VERBS)}; see {argv[0]} --help")
    path: str | None = FLAGS.admin_socket
    if path is None:
        raise ValueError("admin_socket: not given; name the one that the server was started with")

    import grpc

    from serving.client.messages import ServerError
    from serving.proto.exegpt.v1.admin_pb2_grpc import AdminStub

    # What a trace of a busy minute takes is more than the usual limit.
    options = (("grpc.max_receive_message_length", -1),)
    with grpc.insecure_channel(f"unix:{Path(path).absolute()}", options=options) as channel:
        try:
            text = VERBS[verbs[0]](AdminStub(channel), channel)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise ValueError(f"admin_socket: no server answers at {path}; is it the right one?") from error
            raise ServerError(error.code().name, error.details(), None) from error
    if FLAGS.output == "-":
        print(text)
    else:
        Path(FLAGS.output).write_text(text + "\n", encoding="utf-8")
    return 0


def _plan(stub: AdminStub, channel: grpc.Channel) -> str:
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    found = stub.GetPlan(pb.GetPlanRequest(), timeout=FLAGS.timeout_s)
    plan, schedule = json.loads(found.plan), json.loads(found.schedule)
    changed = {name: value for name, value in schedule.items() if plan["schedule"].get(name) != value}
    if changed:
        print(f"in force instead: {json.dumps(changed)}", file=sys.stderr)
    return str(found.plan).rstrip()


def _stats(stub: AdminStub, channel: grpc.Channel) -> str:
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    found = stub.GetStats(pb.GetStatsRequest(), timeout=FLAGS.timeout_s)
    shown = {
        "state": found.state,
        "admitted": found.admitted,
        "outcomes": dict(found.outcomes),
        "runner": json.loads(found.runner or "null"),
        "beside": json.loads(found.beside or "null"),
        "decisions": [json.loads(decision) for decision in found.decisions],
    }
    return json.dumps(shown, indent=2)


def _timeline(stub: AdminStub, channel: grpc.Channel) -> str:
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    request = pb.GetTimelineRequest(seconds=FLAGS.seconds)
    return str(stub.GetTimeline(request, timeout=FLAGS.timeout_s).trace)


def _state(stub: AdminStub, channel: grpc.Channel) -> str:
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    return json.dumps(json.loads(stub.DumpState(pb.DumpStateRequest(), timeout=FLAGS.timeout_s).state), indent=2)


def _replan(stub: AdminStub, channel: grpc.Channel) -> str:
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    stub.Replan(pb.ReplanRequest(latency_bound_s=FLAGS.latency_bound_s), timeout=FLAGS.timeout_s)
    return json.dumps({"asked": True})


def _drain(stub: AdminStub, channel: grpc.Channel) -> str:
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    return json.dumps({"admitted": stub.Drain(pb.DrainRequest(), timeout=FLAGS.timeout_s).admitted})


def _profile(stub: AdminStub, channel: grpc.Channel) -> str:
    """Start, wait, stop: Ctrl-C stops it too."""
    from serving.proto.exegpt.v1 import admin_pb2 as pb

    seconds = _PROFILE_S if FLAGS.seconds is None else FLAGS.seconds
    if not 0 < seconds <= _MOST_PROFILE_S:
        raise ValueError(f"seconds: {seconds} is not in (0, {_MOST_PROFILE_S:g}] for a profile")
    name = stub.StartProfile(pb.StartProfileRequest(), timeout=FLAGS.timeout_s).name
    try:
        time.sleep(seconds)
    finally:
        stub.StopProfile(pb.StopProfileRequest(), timeout=FLAGS.timeout_s)
    return json.dumps({"name": name, "seconds": seconds})


def _channelz(stub: AdminStub, channel: grpc.Channel) -> str:
    from google.protobuf.json_format import MessageToDict
    from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

    asked = channelz_pb2_grpc.ChannelzStub(channel)
    servers = asked.GetServers(channelz_pb2.GetServersRequest(), timeout=FLAGS.timeout_s)
    return json.dumps(MessageToDict(servers), indent=2)


VERBS: dict[str, Callable[[AdminStub, grpc.Channel], str]] = {
    "plan": _plan,
    "stats": _stats,
    "timeline": _timeline,
    "state": _state,
    "replan": _replan,
    "drain": _drain,
    "profile": _profile,
    "channelz": _channelz,
}
