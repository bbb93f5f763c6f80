"""`inference.GRPCInferenceService`: what KServe's and Triton's clients ask, answered from a Frontend.

Statuses are those of the other doors; unknown models are NOT_FOUND. What this protocol has beyond the methods here
(repository changes, shared memory, tracing, logging) is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from importlib import metadata

import grpc
import grpc.aio

from serving.doors.ending import REQUEST_ID, abort
from serving.doors.health import Health
from serving.doors.open_inference.answers import Answers
from serving.doors.open_inference.models import VERSION, Model, Models, UnknownModel
from serving.doors.open_inference.requests import REFUSED, Asked, asked_of, refusal_of
from serving.doors.open_inference.responses import response_of, tokenizer_of
from serving.doors.open_inference.statistics import Statistics
from serving.doors.open_inference.stream import Stream
from serving.frontend import Frontend
from serving.live_request import Update
from serving.proto.inference import inference_pb2 as pb
from serving.proto.inference import inference_pb2_grpc as pb_grpc

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_SERVER = "exegpt"
_EXTENSIONS = ("model_configuration", "parameters", "statistics")
_STRICT = ("triton_grpc_error", "true")


class OpenInferenceDoor(pb_grpc.GRPCInferenceServiceServicer):
    """Answers from a Frontend.

    Args:
      frontend: answers the requests.
      states: says whether they are taken.
      name: of the model.
    """

    def __init__(self, frontend: Frontend, states: Health, name: str) -> None:
        self._frontend = frontend
        self._states = states
        self._models = Models.named(name)
        self._statistics = {model.name: Statistics(model.name) for model in self._models}

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._states.serving)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        try:
            self._models.find(request.name, request.version)
        except UnknownModel:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._states.serving)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=_SERVER, version=_version(), extensions=_EXTENSIONS)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        return (await self._found(request.name, request.version, context)).metadata()

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelConfigResponse:
        return (await self._found(request.name, request.version, context)).config()

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelStatisticsResponse:
        asked = [await self._found(request.name, request.version, context)] if request.name else list(self._models)
        return pb.ModelStatisticsResponse(model_stats=[self._statistics[model.name].message() for model in asked])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        if request.repository_name:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "repository_name: the repository has no name; leave it out"
            )
        response = pb.RepositoryIndexResponse()
        ready = self._states.serving
        if ready or not request.ready:
            for model in self._models:
                index = response.models.add(name=model.name, version=VERSION, state="READY" if ready else "UNAVAILABLE")
                if not ready:
                    index.reason = "draining" if self._frontend.draining else "warming up"
        return response

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        arrival_s = time.monotonic()
        trailers: tuple[tuple[str, str], ...] = ()
        try:
            asked = asked_of(self._models, request)
            trailers = ((REQUEST_ID, asked.id or secrets.token_hex(8)),)
            if asked.stream:
                raise ValueError("stream: cannot be true for ModelInfer; ask with ModelStreamInfer")
            updates = await self._whole(asked, trailers[0][1], _deadline(context))
        # A client that left counts too.
        except BaseException as error:
            if request.model_name in self._statistics:
                self._statistics[request.model_name].failed(time.monotonic() - arrival_s)
            if not isinstance(error, REFUSED):
                raise
            await abort(context, refusal_of(request.id, error), trailers)
        self._statistics[asked.model.name].answered(updates)
        context.set_trailing_metadata(trailers)
        return response_of(asked, updates, tokenizer_of(self._frontend), final=True)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        stream = Stream(
            self._frontend,
            self._models,
            self._statistics,
            _deadline(context),
            strict=_STRICT in [(key, value) for key, value in context.invocation_metadata() or ()],
        )
        async with contextlib.aclosing(stream.answer(requests)) as responses:
            async for response in responses:
                yield response
        if stream.cut_short is not None:
            await abort(context, stream.cut_short)

    async def _whole(self, asked: Asked, request_id: str, deadline_s: float | None) -> list[Update]:
        ready = asyncio.Event()
        answers = Answers(self._frontend)
        await answers.begin(asked, deadline_s, ready.set, request_id)
        try:
            while not answers.ended:
                await ready.wait()
                ready.clear()
            return answers.take()
        finally:
            answers.close()

    async def _found(self, name: str, version: str, context: grpc.aio.ServicerContext) -> Model:
        try:
            return self._models.find(name, version)
        except UnknownModel as error:
            await abort(context, refusal_of("", error))


def add_to(server: grpc.aio.Server, frontend: Frontend, states: Health, name: str) -> None:
    """Registers the service and what health calls it."""
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(OpenInferenceDoor(frontend, states, name), server)
    states.add(SERVICE_NAME)


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    """Of the call, on time.monotonic's clock."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


def _version() -> str:
    try:
        return metadata.version("exegpt-jax")
    except metadata.PackageNotFoundError:
        return "from source"
