"""`exegpt.v1.Admin`: what an operator asks of a server and does to it.

It stands on a unix socket of its own (`serving.admin_socket`), never beside the services for clients. Statuses:
INVALID_ARGUMENT names the field and its range; FAILED_PRECONDITION says what to start the server with, or that nothing
runs; INTERNAL is opaque.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message

from serving.frontend import Frontend
from serving.proto.exegpt.v1 import admin_pb2 as pb
from serving.proto.exegpt.v1 import admin_pb2_grpc as pb_grpc
from serving.telemetry.run_view import Ask
from serving.telemetry.stacks import stacks, tasks

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Admin"].full_name
_TRACE_S = 60.0


class AdminDoor(pb_grpc.AdminServicer):
    """Asks the run, and the front end.

    Args:
      frontend: of the server.
      ask: the run, which begins and ends while the server lives.
      drain: begins the server's end.
    """

    def __init__(self, frontend: Frontend, ask: Ask, drain: Callable[[], None]) -> None:
        self._frontend, self._ask, self._drain = frontend, ask, drain

    async def GetPlan(self, request: pb.GetPlanRequest, context: grpc.aio.ServicerContext) -> pb.GetPlanResponse:
        found = await self._answer(context, request, "plan")
        return pb.GetPlanResponse(digest=found["digest"], plan=found["plan"], schedule=json.dumps(found["schedule"]))

    async def GetStats(self, request: pb.GetStatsRequest, context: grpc.aio.ServicerContext) -> pb.GetStatsResponse:
        frontend = self._frontend
        response = pb.GetStatsResponse(
            state=frontend.state, admitted=frontend.admitted, outcomes=dict(frontend.tally.outcomes.items())
        )
        try:
            found = await self._ask("stats", {})
        except ValueError:
            return response
        response.runner, response.beside = json.dumps(found["runner"]), json.dumps(found["beside"])
        response.decisions.extend(json.dumps(decision) for decision in found["decisions"])
        return response

    async def GetTimeline(
        self, request: pb.GetTimelineRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetTimelineResponse:
        seconds = request.seconds if request.HasField("seconds") else _TRACE_S
        found = await self._answer(context, request, "timeline", seconds=seconds)
        return pb.GetTimelineResponse(trace=found["trace"])

    async def DumpState(self, request: pb.DumpStateRequest, context: grpc.aio.ServicerContext) -> pb.DumpStateResponse:
        frontend = self._frontend
        live = [{"request": one.request_id, "id": one.number, "generated_tokens": one.tokens} for one in frontend.live]
        state: dict[str, object] = {"state": frontend.state, "admitted": frontend.admitted, "live": live}
        state |= stacks() | tasks()
        try:
            state["run"] = await self._ask("state", {})
        except ValueError as error:
            state["run"] = str(error)
        return pb.DumpStateResponse(state=json.dumps(state))

    async def Replan(self, request: pb.ReplanRequest, context: grpc.aio.ServicerContext) -> pb.ReplanResponse:
        given = {"latency_bound_s": request.latency_bound_s} if request.HasField("latency_bound_s") else {}
        await self._answer(context, request, "replan", **given)
        return pb.ReplanResponse()

    async def Drain(self, request: pb.DrainRequest, context: grpc.aio.ServicerContext) -> pb.DrainResponse:
        self._drain()
        return pb.DrainResponse(admitted=self._frontend.admitted)

    async def StartProfile(
        self, request: pb.StartProfileRequest, context: grpc.aio.ServicerContext
    ) -> pb.StartProfileResponse:
        given = {"most_s": request.most_s} if request.HasField("most_s") else {}
        found = await self._answer(context, request, "profile_start", **given)
        return pb.StartProfileResponse(name=found["name"])

    async def StopProfile(
        self, request: pb.StopProfileRequest, context: grpc.aio.ServicerContext
    ) -> pb.StopProfileResponse:
        return pb.StopProfileResponse(name=(await self._answer(context, request, "profile_stop"))["name"])

    async def _answer(
        self, context: grpc.aio.ServicerContext, request: Message, about: str, **arguments: object
    ) -> Any:
        try:
            return await self._ask(about, arguments)
        except ValueError as error:
            await _abort(context, request, str(error))


async def _abort(context: grpc.aio.ServicerContext, request: Message, line: str) -> NoReturn:
    """A line that begins with a field of the request is the caller's fault."""
    own = line.partition(":")[0] in request.DESCRIPTOR.fields_by_name
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT if own else grpc.StatusCode.FAILED_PRECONDITION, line)
    raise AssertionError("abort returned")
