"""Many requests over one ModelStreamInfer call, and their answers as they come: one look at all of them a phase.

A message of this protocol carries one response, so a phase brings one for each request that streams. A reader that lags
gets fewer and larger ones.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator

from serving.admission.refusals import draining
from serving.doors.open_inference.answers import Answers
from serving.doors.open_inference.models import Models
from serving.doors.open_inference.requests import REFUSED, Asked, asked_of, refusal_of
from serving.doors.open_inference.responses import empty_final, response_of, tokenizer_of
from serving.doors.open_inference.statistics import Statistics
from serving.doors.wire import Refusal
from serving.frontend import Frontend
from serving.proto.inference import inference_pb2 as pb

_MOST_UNREAD_ERRORS = 256
"""Requests are read no further while so many errors wait for a client that does not read."""
_MOST_ECHOED = 128


class Stream:
    """The requests of one call.

    Args:
      frontend: answers them.
      models: those that may be asked.
      statistics: by the name of the model.
      deadline_s: of them all, on time.monotonic's clock.
      strict: the first error ends the call.

    Attributes:
      cut_short: why the call ends before the client was done, if it does.
    """

    def __init__(
        self,
        frontend: Frontend,
        models: Models,
        statistics: dict[str, Statistics],
        deadline_s: float | None,
        strict: bool,
    ) -> None:
        self.cut_short: Refusal | None = None
        self._frontend = frontend
        self._models = models
        self._statistics = statistics
        self._deadline_s = deadline_s
        self._strict = strict
        # Several requests may have no id, so they have numbers here.
        self._numbers = itertools.count()
        self._live: dict[int, tuple[Asked, Answers]] = {}
        # Requests whose answers have gained something, in the order of their gaining it.
        self._news: dict[int, None] = {}
        self._errors: asyncio.Queue[pb.ModelStreamInferResponse] = asyncio.Queue(_MOST_UNREAD_ERRORS)
        self._ready = asyncio.Event()

    async def answer(
        self, requests: AsyncIterator[pb.ModelInferRequest]
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Until the client has half-closed and all is answered, or the server stops, or a strict call's error."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(self._has_read)
        self._frontend.on_drain.add(self._ready.set)
        if self._frontend.draining:
            self._ready.set()
        try:
            while self.cut_short is None:
                await self._ready.wait()
                self._ready.clear()
                while self.cut_short is None and (self._news or not self._errors.empty()):
                    for message in self._messages():
                        yield message
                if reading.done():
                    reading.result()
                if not self._live and self._errors.empty() and (reading.done() or self._frontend.draining):
                    break
            if not reading.done() and self.cut_short is None:
                self.cut_short = refusal_of("", draining())
        finally:
            reading.cancel()
            self._frontend.on_drain.discard(self._ready.set)
            for number in list(self._live):
                self._end(number)

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        # Looked at here too: the call may have ended for another reason.
        if not reading.cancelled():
            reading.exception()
        self._ready.set()

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        async for request in requests:
            begin_s = time.monotonic()
            try:
                await self._begin(request)
            except REFUSED as error:
                if request.model_name in self._statistics:
                    self._statistics[request.model_name].failed(time.monotonic() - begin_s)
                message = self._refuse(request.model_name, request.id, error)
                if message is not None:
                    await self._errors.put(message)
                self._ready.set()

    async def _begin(self, request: pb.ModelInferRequest) -> None:
        asked = asked_of(self._models, request)
        if asked.id and any(asked.id == other.id for other, _ in self._live.values()):
            raise ValueError("id: is under way on this call; choose another")
        number, answers = next(self._numbers), Answers(self._frontend)
        await answers.begin(asked, self._deadline_s, functools.partial(self._wake, number), asked.id)
        self._live[number] = asked, answers
        # The first of several may have been under way for a while.
        self._wake(number)

    def _wake(self, number: int) -> None:
        self._news[number] = None
        self._ready.set()

    def _end(self, number: int, *, answered: bool = False) -> None:
        asked, answers = self._live.pop(number)
        if not answered:
            self._statistics[asked.model.name].failed(time.monotonic() - answers.arrival_s)
        answers.close()

    def _refuse(self, model_name: str, request_id: str, error: Exception) -> pb.ModelStreamInferResponse | None:
        """The error in band; on a strict call nothing, and the call's end."""
        refusal = refusal_of(request_id, error)
        if self._strict:
            self.cut_short = self.cut_short or refusal
            return None
        # The text is all that tritonclient hands on, so it says which request it is about.
        told = f"[request id: {request_id[:_MOST_ECHOED]}] " if request_id else ""
        response = pb.ModelInferResponse(model_name=model_name[:_MOST_ECHOED], id=request_id[:_MOST_ECHOED])
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(error_message=told + refusal.details, infer_response=response)

    def _messages(self) -> list[pb.ModelStreamInferResponse]:
        """Of one request that has something to say, or one error."""
        if not self._errors.empty():
            return [self._errors.get_nowait()]
        number = next(iter(self._news))
        del self._news[number]
        if number not in self._live:
            return []  # not all of its answers have begun
        asked, answers = self._live[number]
        ended = answers.ended
        # Characters that are held back, or an answer that was asked for whole.
        if not answers.has_news or not (ended or asked.stream):
            return []
        try:
            updates = answers.take()
        except REFUSED as error:
            self._end(number)
            message = self._refuse(asked.model.name, asked.id, error)
            return [] if message is None else [message]
        apart = ended and asked.empty_final
        responses = [response_of(asked, updates, tokenizer_of(self._frontend), final=ended and not apart)]
        if apart:
            responses.append(empty_final(asked))
        if ended:
            self._statistics[asked.model.name].answered(updates)
            self._end(number, answered=True)
        return [pb.ModelStreamInferResponse(infer_response=response) for response in responses]
