"""`vllm.grpc.engine.VllmEngine`: what `smg` speaks to its engines, so that it makes an OpenAI HTTP API of this server.

The gateway renders chat templates, tokenises, and turns tokens back into text; token ids pass here. Statuses are those
of `exegpt.v1.Generation`. Embed, FlushCache, the profiler and cache events answer UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Collection

import grpc
import grpc.aio
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as pb_grpc
from smg_grpc_proto.generated import common_pb2

from exegpt_jax.text.prompts import ModelText
from serving.admission.refusals import Unavailable
from serving.backend import Backend
from serving.doors.ending import REQUEST_ID, abort
from serving.doors.health import Health
from serving.doors.vllm_engine.card import ModelCard, tokenizer_bundle
from serving.doors.vllm_engine.choices import Choices
from serving.doors.vllm_engine.wire import aborted, chunk_of, complete_of, fields_of, merged
from serving.doors.wire import REFUSED, check_id, refusal_of
from serving.frontend import Frontend
from serving.live_request import Update
from serving.security.caller import CALLER

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["VllmEngine"].full_name
_SERVER_TYPE = "exegpt_jax"
_CHUNK_BYTES = 64 * 2**10


class VllmEngineDoor(pb_grpc.VllmEngineServicer):
    """Answers from a Frontend; `card` says which model."""

    def __init__(self, frontend: Frontend, card: ModelCard) -> None:
        self._frontend = frontend
        self._card = card
        # By caller too: with keys, nobody aborts another's request.
        self._under_way: dict[tuple[str | None, str], Choices] = {}
        self._start_s = time.monotonic()
        self._last_request_s = 0.0

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse]:
        self._last_request_s = time.time()
        request_id = request.request_id or secrets.token_hex(8)
        remaining_s = context.time_remaining()
        deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        trailers: tuple[tuple[str, str], ...] = ()
        try:
            check_id(request_id, "request_id")
            trailers = ((REQUEST_ID, request_id),)
            context.set_trailing_metadata(trailers)
            async with contextlib.aclosing(self._answer(request_id, request, deadline_s)) as responses:
                async for response in responses:
                    yield response
        except REFUSED as error:
            await abort(context, refusal_of(request_id, error), trailers)

    async def _answer(
        self, request_id: str, request: pb.GenerateRequest, deadline_s: float | None
    ) -> AsyncGenerator[pb.GenerateResponse]:
        name = CALLER.get(), request_id
        if name in self._under_way:
            raise ValueError("request_id: is under way; choose another")
        choices = self._under_way[name] = Choices(self._frontend, request_id)
        try:
            await choices.begin(fields_of(request), request.sampling_params.n or 1, deadline_s)
            text, _ = self._opened()
            unnamed_ids = set(text.eos_ids) - set(request.sampling_params.stop_token_ids)
            responses = _as_it_comes if request.stream else _whole
            async with contextlib.aclosing(responses(choices, unnamed_ids)) as found:
                async for response in found:
                    yield response
        finally:
            choices.close()
            del self._under_way[name]

    async def Abort(self, request: pb.AbortRequest, context: grpc.aio.ServicerContext) -> pb.AbortResponse:
        """Unknown ids have ended already, or never were."""
        for request_id in request.request_ids:
            if (choices := self._under_way.get((CALLER.get(), request_id))) is not None:
                choices.abort()
        return pb.AbortResponse()

    async def HealthCheck(
        self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> pb.HealthCheckResponse:
        state = self._frontend.state
        return pb.HealthCheckResponse(healthy=state == "serving", message=state)

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelInfoResponse:
        text, _ = await self._opened_or_abort(context)
        card = self._card
        return pb.GetModelInfoResponse(
            model_path=str(card.directory),
            tokenizer_path=str(card.directory) if text.tokenizer is not None else "",
            served_model_name=card.name,
            is_generation=True,
            max_context_length=text.cache_tokens,
            max_req_input_len=text.max_prompt_tokens,
            vocab_size=text.vocab_size,
            model_type=card.model_type,
            architectures=card.architectures,
            eos_token_ids=text.eos_ids,
            pad_token_id=card.pad_id,
            bos_token_id=card.bos_id,
            default_sampling_params_json=json.dumps({"temperature": 0.0, **text.defaults}),
        )

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetServerInfoResponse:
        _, runner = await self._opened_or_abort(context)
        return pb.GetServerInfoResponse(
            active_requests=self._frontend.admitted,
            is_paused=self._frontend.draining,
            last_receive_timestamp=self._last_request_s,
            uptime_seconds=time.monotonic() - self._start_s,
            server_type=_SERVER_TYPE,
            data_parallel_size=1,
            kv_cache_dtype=runner.plan.cache_dtype,
            model_dtype=runner.plan.dtype,
            max_num_seqs=runner.plan.schedule.most_rows,
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, context: grpc.aio.ServicerContext) -> pb.GetLoadsResponse:
        """Of rank 0, the only one. A running request holds a whole row of the cache."""
        _, runner = await self._opened_or_abort(context)
        stats, rows, row_tokens = runner.stats(), runner.plan.schedule.most_rows, runner.plan.cache_tokens
        waiting = stats.waiting + self._frontend.gate.waiting
        load = pb.SchedulerLoad(
            num_running_reqs=stats.running,
            num_waiting_reqs=waiting,
            num_total_reqs=stats.running + waiting,
            num_used_tokens=min(stats.running, rows) * row_tokens,
            max_total_num_tokens=rows * row_tokens,
            token_usage=min(stats.running / rows, 1.0),
            max_running_requests=rows,
        )
        now = datetime.datetime.now(datetime.UTC).isoformat()
        return pb.GetLoadsResponse(timestamp=now, version=_SERVER_TYPE, dp_rank_count=1, loads=[load])

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[common_pb2.GetTokenizerChunk]:
        """A zip archive in pieces; the last one carries its SHA-256."""
        try:
            data = await asyncio.to_thread(tokenizer_bundle, self._card.directory)
        except FileNotFoundError:
            line = "tokenizer: this model directory has no tokenizer.json; send token ids"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, line)
        digest = hashlib.sha256(data).hexdigest()
        for begin in range(0, len(data), _CHUNK_BYTES):
            end = begin + _CHUNK_BYTES
            yield common_pb2.GetTokenizerChunk(data=data[begin:end], sha256=digest if end >= len(data) else "")

    async def _opened_or_abort(self, context: grpc.aio.ServicerContext) -> tuple[ModelText, Backend]:
        try:
            return self._opened()
        except Unavailable as error:
            await abort(context, refusal_of("", error))

    def _opened(self) -> tuple[ModelText, Backend]:
        if self._frontend.opened is None:
            raise Unavailable("the server is warming up", 1.0, "WARMING_UP")
        return self._frontend.opened


async def _as_it_comes(choices: Choices, unnamed_ids: Collection[int]) -> AsyncGenerator[pb.GenerateResponse]:
    async with contextlib.aclosing(choices.updates()) as updates:
        async for index, update in updates:
            if update is None:
                yield aborted(index)
                continue
            if update.token_ids:
                yield chunk_of(index, update)
            if update.ending is not None:
                yield complete_of(index, update, unnamed_ids)


async def _whole(choices: Choices, unnamed_ids: Collection[int]) -> AsyncGenerator[pb.GenerateResponse]:
    """The answers in their order, however they ended: gateways number them as they come."""
    gained: dict[int, list[Update]] = collections.defaultdict(list)
    ends: dict[int, pb.GenerateResponse] = {}
    async with contextlib.aclosing(choices.updates()) as updates:
        async for index, update in updates:
            if update is None:
                ends[index] = aborted(index)
                continue
            gained[index].append(update)
            if update.ending is not None:
                ends[index] = complete_of(index, merged(gained.pop(index)), unnamed_ids)
    for index in sorted(ends):
        yield ends[index]


def add_to(server: grpc.aio.Server, frontend: Frontend, states: Health, card: ModelCard) -> None:
    states.add(SERVICE_NAME)
    pb_grpc.add_VllmEngineServicer_to_server(VllmEngineDoor(frontend, card), server)
