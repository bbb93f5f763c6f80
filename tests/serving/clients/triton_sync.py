"""tritonclient.grpc, blocking: `triton_sync.py ADDRESS CASE [AUTHORITY [KEY CERTIFICATE]]` prints what it found."""

from __future__ import annotations

import json
import queue
import sys
import time

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

WAIT_S = 60
NO_END = {"ignore_eos": True}


def inputs_of(**values: object) -> list[triton.InferInput]:
    found = []
    for name, value in values.items():
        match value:
            case bool():
                array, datatype = np.array([value]), "BOOL"
            case str():
                array, datatype = np.array([value.encode()], dtype=np.object_), "BYTES"
            case dict():
                array, datatype = np.array([json.dumps(value).encode()], dtype=np.object_), "BYTES"
            case int():
                array, datatype = np.array([value], np.int32), "INT32"
            case _:
                array, datatype = np.array(value, np.int32), "INT32"
        found.append(triton.InferInput(name, list(array.shape), datatype))
        found[-1].set_data_from_numpy(array)
    return found


def outputs_of(result: triton.InferResult) -> dict[str, object]:
    found = {}
    for output in result.get_response().outputs:
        values = result.as_numpy(output.name).tolist()
        found[output.name] = [value.decode() if isinstance(value, bytes) else value for value in values]
    return found


def error_of(error: InferenceServerException) -> list[str | None]:
    return [error.status(), error.message()]


def is_final(result: triton.InferResult) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


class Stream:
    """What a stream's callback was told, in its order."""

    def __init__(self, client: triton.InferenceServerClient, **options: object) -> None:
        self._told: queue.Queue = queue.Queue()
        self._client = client
        client.start_stream(lambda result, error: self._told.put((result, error)), **options)

    def ask(self, model: str, request_id: str, empty_final: bool = False, **values: object) -> None:
        self._client.async_stream_infer(
            model, inputs_of(**values), request_id=request_id, enable_empty_final_response=empty_final
        )

    def next(self) -> tuple[triton.InferResult | None, InferenceServerException | None]:
        return self._told.get(timeout=WAIT_S)

    def until_ends(self, count: int) -> list[tuple]:
        """(id, outputs, final) or (error) until so many requests have had their last response."""
        found = []
        while count:
            result, error = self.next()
            if error is not None:
                found.append(("error", *error_of(error)))
                count -= 1
            else:
                found.append((result.get_response().id, outputs_of(result), is_final(result)))
                count -= is_final(result)
        return found


def about(client: triton.InferenceServerClient) -> object:
    try:
        client.load_model("model")
        load = None
    except InferenceServerException as error:
        load = error.status()
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(name) for name in ("model", "model_tokens", "other")],
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("model", as_json=True),
        "config": client.get_model_config("model_tokens", as_json=True),
        "statistics": client.get_inference_statistics("model", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "load": load,
    }


def infer(client: triton.InferenceServerClient) -> object:
    asked = inputs_of(
        text_input="hello",
        max_tokens=20,
        exclude_input_in_output=True,
        sampling_parameters={**NO_END, "temperature": "0"},
        return_finish_reason=True,
        return_num_output_tokens=True,
    )
    tokens = inputs_of(input_ids=[5, 6, 7], request_output_len=20)
    found = {"plain": outputs_of(client.infer("model", asked, request_id="mine"))}
    for algorithm in ("gzip", "deflate"):
        found[algorithm] = outputs_of(client.infer("model", asked, compression_algorithm=algorithm))
    only = [triton.InferRequestedOutput("text_output")]
    found["only"] = outputs_of(client.infer("model", asked, outputs=only))
    found["tokens"] = outputs_of(client.infer("model_tokens", tokens, parameters=NO_END))
    return found


def errors(client: triton.InferenceServerClient) -> object:
    found = []
    for model, values in (
        ("model", {"text_input": "x", "sampling_parameters": {"temperature": 7}}),
        ("model", {"text_input": "x", "stream": True}),
        ("other", {"text_input": "x"}),
        ("model_tokens", {"input_ids": [1, 320]}),
    ):
        try:
            client.infer(model, inputs_of(**values))
        except InferenceServerException as error:
            found.append(error_of(error))
    return found


def endless() -> dict[str, object]:
    return {"text_input": "x", "max_tokens": 200, "sampling_parameters": NO_END}


def time_outs(client: triton.InferenceServerClient) -> object:
    found = []
    for options in ({"client_timeout": 0.3}, {"timeout": 300_000}):
        try:
            client.infer("model", inputs_of(**endless()), **options)
        except InferenceServerException as error:
            found.append(error_of(error))
    stream = Stream(client, stream_timeout=0.3)
    stream.ask("model", "late", stream=True, **endless())
    while (told := stream.next())[1] is None:
        pass
    client.stop_stream()
    return [*found, error_of(told[1])]


def cancel(client: triton.InferenceServerClient) -> object:
    told: queue.Queue = queue.Queue()
    call = client.async_infer("model", inputs_of(**endless()), lambda result, error: told.put((result, error)))
    time.sleep(0.3)
    call.cancel()
    _, error = told.get(timeout=WAIT_S)
    stream = Stream(client)
    for number in range(8):
        stream.ask("model", f"r{number}", stream=True, **endless())
    stream.next()
    client.stop_stream(cancel_requests=True)
    while (ended := stream.next())[1] is None:
        pass
    return [error_of(error)[0], error_of(ended[1])[0]]


def stream_many(client: triton.InferenceServerClient) -> object:
    stream = Stream(client, compression_algorithm="gzip")
    for number in range(32):
        options = {"request_output_len": 40, "sampling_parameters": NO_END, "stream": True}
        stream.ask("model_tokens", f"r{number}", input_ids=[number + 1] * 3, **options)
    told = stream.until_ends(32)
    client.stop_stream()
    return [(name, outputs["output_ids"], final) for name, outputs, final in told]


def stream_ends(client: triton.InferenceServerClient) -> object:
    options = {"text_input": "x", "max_tokens": 12, "sampling_parameters": NO_END}
    stream = Stream(client)
    stream.ask("model", "whole", **options)
    whole = stream.until_ends(1)
    stream.ask("model", "apart", empty_final=True, stream=True, **options)
    apart = stream.until_ends(1)
    client.stop_stream()
    return {"whole": whole, "apart": apart}


def stream_errors(client: triton.InferenceServerClient) -> object:
    stream = Stream(client)
    stream.ask("model", "good", stream=True, **endless())
    stream.ask("model", "good", text_input="x")
    stream.ask("model", "bad", text_input="x", max_tokens=0)
    told = stream.until_ends(3)
    # The stream is as good as before.
    stream.ask("model", "good", text_input="x", max_tokens=3)
    told += stream.until_ends(1)
    client.stop_stream()
    return {
        "errors": [each[1:] for each in told if each[0] == "error"],
        "finals": [each[0] for each in told if each[0] != "error" and each[2]],
    }


def stream_strict(client: triton.InferenceServerClient) -> object:
    stream = Stream(client, headers={"triton_grpc_error": "true"})
    stream.ask("model", "good", stream=True, **endless())
    stream.next()
    stream.ask("model", "bad", text_input="x", max_tokens=0)
    while (told := stream.next())[1] is None:
        pass
    try:
        stream.ask("model", "more", text_input="x")
        refused = None
    except InferenceServerException as error:
        refused = error.message()
    client.stop_stream()
    return {"error": error_of(told[1]), "refused": refused}


def main(address: str, case: str, authority: str | None = None, *mine: str) -> None:
    files = dict(zip(("private_key", "certificate_chain"), mine, strict=False))
    with triton.InferenceServerClient(
        address, ssl=authority is not None, root_certificates=authority, **files
    ) as client:
        print(json.dumps(globals()[case](client)))


if __name__ == "__main__":
    main(*sys.argv[1:])
