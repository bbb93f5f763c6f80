"""tritonclient.grpc.aio: `triton_asyncio.py ADDRESS CASE` prints what the case found."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import tritonclient.grpc.aio as triton
from triton_sync import NO_END, endless, error_of, inputs_of, is_final, outputs_of
from tritonclient.utils import InferenceServerException


async def infer(client: triton.InferenceServerClient) -> object:
    """32 at once."""
    options = {"request_output_len": 20, "sampling_parameters": NO_END}
    asked = [inputs_of(input_ids=[number + 1] * 3, **options) for number in range(32)]
    results = await asyncio.gather(*(client.infer("model_tokens", inputs) for inputs in asked))
    return {
        "live": await client.is_server_live(),
        "ready": await client.is_model_ready("model"),
        "server": (await client.get_server_metadata(as_json=True))["name"],
        "answers": [outputs_of(result)["output_ids"] for result in results],
    }


async def stream_many(client: triton.InferenceServerClient) -> object:
    finals = asyncio.Semaphore(0)

    async def requests() -> AsyncIterator[dict[str, object]]:
        for number in range(32):
            options = {"request_output_len": 40, "sampling_parameters": NO_END, "stream": True}
            inputs = inputs_of(input_ids=[number + 1] * 3, **options)
            yield {"model_name": "model_tokens", "inputs": inputs, "request_id": f"r{number}"}
        # Half-closed only when everything has come, as a client that has more to ask would be.
        for _ in range(32):
            await finals.acquire()

    told = []
    async for result, error in client.stream_infer(requests()):
        assert error is None, error
        told.append((result.get_response().id, outputs_of(result)["output_ids"], is_final(result)))
        if is_final(result):
            finals.release()
    return told


async def errors(client: triton.InferenceServerClient) -> object:
    async def requests() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "model", "inputs": inputs_of(text_input="x", max_tokens=0), "request_id": "bad"}
        yield {"model_name": "model", "inputs": inputs_of(text_input="x", max_tokens=3), "request_id": "good"}

    told = [
        error_of(error) if error is not None else result.get_response().id
        async for result, error in client.stream_infer(requests())
    ]

    async def only_one() -> AsyncIterator[dict[str, object]]:
        yield {"model_name": "model", "inputs": inputs_of(text_input="x", max_tokens=0), "request_id": "bad"}
        # This client loses the status if it is writing when that comes.
        await asyncio.Event().wait()

    try:
        async for _, error in client.stream_infer(only_one(), headers={"triton_grpc_error": "true"}):
            assert error is None
    except Exception as error:  # of grpc itself: this client hands it on
        told.append([str(error.code()), error.details()])
    return told


async def leave(client: triton.InferenceServerClient) -> object:
    """Time-outs, and streams and calls that are left."""
    found = []
    try:
        await client.infer("model", inputs_of(**endless()), client_timeout=0.3)
    except InferenceServerException as error:
        found.append(error_of(error))
    alone = asyncio.create_task(client.infer("model", inputs_of(**endless())))
    await asyncio.sleep(0.3)
    alone.cancel()
    found.append(str((await asyncio.gather(alone, return_exceptions=True))[0].__class__.__name__))

    async def requests() -> AsyncIterator[dict[str, object]]:
        for number in range(8):
            inputs = inputs_of(stream=True, **endless())
            yield {"model_name": "model", "inputs": inputs, "request_id": f"r{number}"}

    responses = client.stream_infer(requests())
    await anext(responses)
    found.append(responses.cancel())
    return found


async def main(address: str, case: str) -> None:
    async with triton.InferenceServerClient(address) as client:
        print(json.dumps(await globals()[case](client)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
