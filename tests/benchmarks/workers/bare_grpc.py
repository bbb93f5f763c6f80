"""A bare grpc.aio servicer of `exegpt.v1.Generation`: messages of the server's size, and nothing behind them.

    python -m tests.benchmarks.workers.bare_grpc --per_phase=8

No queue, no admission, no engine, no text, no metrics: what grpc.aio itself takes to get answers out. Calls get a
message for every `per_phase` tokens; a session gets one message a round with everybody's next tokens.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc

WORD = " word"


def answer(request_id: str, tokens: int, prompt_tokens: int, per_phase: int) -> list[pb.GenerateResponse]:
    """The messages of one answer, the first token alone as an encode phase delivers it."""
    sizes = [1, *(min(per_phase, tokens - at) for at in range(1, tokens, per_phase))]
    messages = [pb.GenerateResponse(id=request_id, token_ids=range(7, 7 + size), text=WORD * size) for size in sizes]
    finish = messages[-1].finish
    finish.reason, finish.seed = pb.FINISH_REASON_LENGTH, 1 << 61
    finish.usage.prompt_tokens, finish.usage.completion_tokens = prompt_tokens, tokens
    finish.usage.total_tokens = prompt_tokens + tokens
    finish.times.encode_start_s, finish.times.first_token_s, finish.times.last_token_s = 0.1, 0.2, 0.3
    return messages


class Bare(pb_grpc.GenerationServicer):
    def __init__(self, per_phase: int) -> None:
        self._per_phase = per_phase

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        for message in self._answer(request):
            yield message

    async def GenerateStream(
        self, requests: AsyncIterator[pb.GenerateStreamRequest], context: grpc.aio.ServicerContext
    ) -> None:
        await context.send_initial_metadata((("x-session", "open"),))
        live: list[list[pb.GenerateResponse]] = []
        news, ended = asyncio.Event(), False

        async def read() -> None:
            nonlocal ended
            async for asked in requests:
                # In reverse, so that the next message is the last of the list.
                live.extend(self._answer(request)[::-1] for request in asked.requests)
                news.set()
            ended = True
            news.set()

        reading = asyncio.create_task(read())
        while live or not ended:
            if not live:
                news.clear()
                await news.wait()
                continue
            await context.write(pb.GenerateStreamResponse(responses=[messages.pop() for messages in live]))
            live[:] = [messages for messages in live if messages]
        await reading

    def _answer(self, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
        return answer(request.id, request.parameters.max_tokens, len(request.token_ids.ids), self._per_phase)


async def serve(per_phase: int) -> None:
    server = grpc.aio.server()
    pb_grpc.add_GenerationServicer_to_server(Bare(per_phase), server)
    print(f"listening on 127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per_phase", type=int, default=1, help="tokens of a message")
    asyncio.run(serve(parser.parse_args().per_phase))


if __name__ == "__main__":
    main()
