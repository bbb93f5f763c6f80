"""Many requests over one ModelStreamInfer call, and their answers as they come: one look at all of them a phase.

A message of this protocol carries one response, so a phase brings one for each request that streams. A reader that lags
gets fewer and larger ones.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncIterator

from serving.doors.conversation import Conversation
from serving.doors.open_inference.answers import Answers
from serving.doors.open_inference.models import Models
from serving.doors.open_inference.requests import REFUSED, Asked, asked_of, refusal_of
from serving.doors.open_inference.responses import empty_final, response_of, tokenizer_of
from serving.doors.open_inference.statistics import Statistics
from serving.frontend import Frontend
from serving.proto.inference import inference_pb2 as pb

_MOST_UNREAD_ERRORS = 256
"""Requests are read no further while so many errors wait for a client that does not read."""
_MOST_ECHOED = 128


class Stream(Conversation[pb.ModelInferRequest, pb.ModelStreamInferResponse]):
    """The requests of one call of ModelStreamInfer.

    Args:
      frontend: answers them.
      models: those that may be asked.
      statistics: by the name of the model.
      deadline_s: of them all, on time.monotonic's clock.
      strict: the first error ends the call.
    """

    def __init__(
        self,
        frontend: Frontend,
        models: Models,
        statistics: dict[str, Statistics],
        deadline_s: float | None,
        strict: bool,
    ) -> None:
        super().__init__(frontend, deadline_s)
        self._models = models
        self._statistics = statistics
        self._strict = strict
        # Several requests may have no id, so they have numbers here.
        self._numbers = itertools.count()
        self._live: dict[int, tuple[Asked, Answers]] = {}
        # Requests whose answers have gained something, in the order of their gaining it.
        self._news: dict[int, None] = {}
        self._errors: asyncio.Queue[pb.ModelStreamInferResponse] = asyncio.Queue(_MOST_UNREAD_ERRORS)

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

    def _settled(self) -> bool:
        return not self._live and self._errors.empty()

    def _leave(self) -> None:
        for number in list(self._live):
            self._end(number)

    def _say(self) -> list[pb.ModelStreamInferResponse] | None:
        """Of one request that has something to say, or one error."""
        if not self._errors.empty():
            return [self._errors.get_nowait()]
        if not self._news:
            return None
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
