"""A typed client of `exegpt.v1.Generation`: `Client` for threads, `AsyncClient` for asyncio.

    with Client("127.0.0.1:50051") as client:
        for chunk in client.stream("4217 ->", max_tokens=32):
            print(chunk.text, end="")

A prompt is text, a list of token ids, or a list of {"role", "content"}; parameters have vLLM's names.
`Client(address, key=KEY, tls=Tls(ca=FILE))` says who calls, and encrypts.
"""

from serving.client.calls import AsyncClient, Client
from serving.client.channel import Tls
from serving.client.messages import (
    Chunk,
    Finish,
    Parameters,
    Prompt,
    Reply,
    ServerError,
    TokenLogprobs,
    make_request,
)
from serving.client.session import AsyncSession

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "Chunk",
    "Client",
    "Finish",
    "Parameters",
    "Prompt",
    "Reply",
    "ServerError",
    "Tls",
    "TokenLogprobs",
    "make_request",
]
