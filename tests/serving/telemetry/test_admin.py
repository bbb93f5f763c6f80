"""exegpt.v1.Admin on its socket: who may open it, what it tells, what it does, and the command for a terminal."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.client import Client
from serving.proto.exegpt.v1 import admin_pb2 as pb
from serving.proto.exegpt.v1.admin_pb2_grpc import AdminStub
from tests.serving.servers import ServerProcess, environment, exegpt, server_process

SECRET = "the prompt that nobody may read"
FAKE = ("--engine=fake", "--fake_step_s=0.02")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("admin") / "socket"


@pytest.fixture(scope="module")
def server(tiny_model: Path, place: Path) -> Iterator[ServerProcess]:
    profiles = place.parent / "profiles"
    with server_process(tiny_model, *FAKE, f"--admin_socket={place}", f"--profile_dir={profiles}") as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: ServerProcess, place: Path) -> Iterator[AdminStub]:
    with grpc.insecure_channel(f"unix:{place}") as channel:
        yield AdminStub(channel)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(exegpt(*arguments), capture_output=True, text=True, env=environment(), check=False)


def services(target: str) -> set[str]:
    with grpc.insecure_channel(target) as channel:
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked)
        return {service.name for service in listed.list_services_response.service}


def refused(call: object, request: object) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request)  # type: ignore[operator]
    return error.value.code().name, error.value.details()


def test_the_owner_alone_may_open_the_socket(server: ServerProcess, place: Path) -> None:
    mode = place.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert server.address_of("admin") == str(place)


def test_it_stands_apart_from_what_clients_reach(server: ServerProcess, place: Path) -> None:
    there, here = services(server.address), services(f"unix:{place}")
    assert {"exegpt.v1.Admin", "grpc.channelz.v1.Channelz"} <= here
    assert not {"exegpt.v1.Admin", "grpc.channelz.v1.Channelz"} & there
    with grpc.insecure_channel(server.address) as channel:
        assert refused(AdminStub(channel).Drain, pb.DrainRequest())[0] == "UNIMPLEMENTED"


def test_plan_and_stats(server: ServerProcess, admin: AdminStub) -> None:
    with Client(server.address) as client:
        client.generate("x", max_tokens=5, ignore_eos=True)
    found = admin.GetPlan(pb.GetPlanRequest())
    plan = json.loads(found.plan)
    assert plan["schedule"]["policy"] == json.loads(found.schedule)["policy"] == "rra"
    stats = admin.GetStats(pb.GetStatsRequest())
    assert stats.state == "serving"
    assert stats.outcomes["length"] >= 1
    assert json.loads(stats.runner)["generated_tokens"] >= 5
    assert json.loads(stats.beside)["requests"] >= 1


def test_the_timeline_of_the_last_seconds(server: ServerProcess, admin: AdminStub) -> None:
    with Client(server.address) as client:
        client.generate("x", max_tokens=5, ignore_eos=True)
    events = json.loads(admin.GetTimeline(pb.GetTimelineRequest()).trace)["traceEvents"]
    assert {event["cat"] for event in events if event["ph"] == "X"} == {"encode", "decode"}
    assert json.loads(admin.GetTimeline(pb.GetTimelineRequest(seconds=1e-9)).trace)["traceEvents"] == []
    for seconds in (0, -1, 4000, float("nan"), float("inf")):
        code, line = refused(admin.GetTimeline, pb.GetTimelineRequest(seconds=seconds))
        assert code == "INVALID_ARGUMENT"
        assert line.startswith("seconds: ")


def test_the_state_shows_requests_and_threads_but_no_prompt(server: ServerProcess, admin: AdminStub) -> None:
    with Client(server.address) as client:
        stream = client.stream(SECRET, request_id="stuck", max_tokens=200, ignore_eos=True)
        next(stream)
        text = admin.DumpState(pb.DumpStateRequest()).state
        stream.close()  # type: ignore[attr-defined]
    state = json.loads(text)
    (live,) = state["live"]
    assert live["request"] == "stuck"
    (row,) = state["run"]["rows"]
    assert row["id"] == live["id"]
    assert 0 < row["generated_tokens"] < row["max_tokens"] == 200
    assert any("runner" in name for name in state["run"]["threads"])
    assert SECRET not in text


def test_no_plan_is_made_where_none_was_asked_for(admin: AdminStub) -> None:
    code, line = refused(admin.Replan, pb.ReplanRequest())
    assert (code, line) == (
        "FAILED_PRECONDITION",
        "replan: off, so the plan stands; start the server with --replan=auto",
    )
    for bound_s in (0.0, -1.0, float("nan"), float("inf")):
        code, line = refused(admin.Replan, pb.ReplanRequest(latency_bound_s=bound_s))
        assert code == "INVALID_ARGUMENT"
        assert line.startswith("latency_bound_s: ")


def test_a_capture_goes_where_the_server_was_told(server: ServerProcess, admin: AdminStub, place: Path) -> None:
    assert refused(admin.StopProfile, pb.StopProfileRequest())[0] == "FAILED_PRECONDITION"
    assert refused(admin.StartProfile, pb.StartProfileRequest(most_s=61))[0] == "INVALID_ARGUMENT"
    name = admin.StartProfile(pb.StartProfileRequest()).name
    code, line = refused(admin.StartProfile, pb.StartProfileRequest())
    assert (code, line) == ("FAILED_PRECONDITION", f"profile: {name} is under way; stop it first")
    assert admin.StopProfile(pb.StopProfileRequest()).name == name
    assert list((place.parent / "profiles" / name).rglob("*.xplane.pb"))


def test_channelz_counts_calls(place: Path) -> None:
    with grpc.insecure_channel(f"unix:{place}") as channel:
        found = channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest())
    assert sum(one.data.calls_started for one in found.server) > 0


def test_the_command_prints_and_writes(server: ServerProcess, place: Path, tmp_path: Path) -> None:
    there = f"--admin_socket={place}"
    shown = run("admin", "stats", there)
    assert (shown.returncode, json.loads(shown.stdout)["state"]) == (0, "serving")
    assert run("admin", "timeline", there, f"--output={tmp_path / 'trace.json'}").returncode == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert json.loads(run("admin", "plan", there).stdout)["schedule"]["policy"] == "rra"
    for arguments, line in (
        (("replan", there), "FAILED_PRECONDITION: replan: off, so the plan stands"),
        (("nothing", there), "arguments: nothing is not one of plan, stats"),
        (("stats",), "admin_socket: not given"),
        (("stats", f"--admin_socket={tmp_path / 'none'}"), f"admin_socket: no server answers at {tmp_path / 'none'}"),
    ):
        done = run("admin", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith(f"exegpt: {line}")
        assert len(done.stderr.splitlines()) == 1


def test_drain_answers_what_was_admitted_and_ends_the_server(tiny_model: Path, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    # Left behind by a server that was killed.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    with server_process(tiny_model, *FAKE, f"--admin_socket={place}") as server, Client(server.address) as client:
        code, line = refused(AdminStub(grpc.insecure_channel(f"unix:{place}")).StartProfile, pb.StartProfileRequest())
        assert code == "FAILED_PRECONDITION"
        assert line.startswith("profile_dir: not given")
        stream = client.stream("x", max_tokens=60, ignore_eos=True)
        tokens = len(next(stream).token_ids)
        drained = run("admin", "drain", f"--admin_socket={place}")
        assert json.loads(drained.stdout) == {"admitted": 1}
        assert tokens + sum(len(chunk.token_ids) for chunk in stream) == 60
        assert server.finish()[0] == 0
    assert not place.exists()


def test_a_path_that_cannot_be_had_is_one_line(server: ServerProcess, tiny_model: Path, place: Path) -> None:
    plain = place.parent / "plain"
    plain.write_text("")
    for path, line in (
        (place, f"another server listens at {place}"),
        (plain, f"{plain} is there and no socket"),
        (place.parent / "none" / "socket", f"{place.parent / 'none'} is no directory"),
        (Path("/tmp") / ("x" * 120), "longer than 107 bytes"),
    ):
        with server_process(tiny_model, "--engine=fake", f"--admin_socket={path}") as second:
            status, _, errors = second.finish()
        assert status == 1
        assert errors.splitlines()[-1].startswith(f"exegpt: admin_socket: {line}")
    # It has not taken the socket from the server that has it.
    assert os.path.exists(place)
    assert run("admin", "stats", f"--admin_socket={place}").returncode == 0
