"""A foreign client's side of `test_vllm_engine`: calls with the stubs of smg-grpc-proto alone.

engine_calls.py CASE ADDRESS [JSON]
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
import zipfile

import grpc
from google.protobuf import json_format
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as pb_grpc
from smg_grpc_proto.generated import common_pb2


def generate(stub, request):
    """Every response of one request, which is given in the protocol's own JSON."""
    responses = stub.Generate(json_format.ParseDict(request, pb.GenerateRequest()), timeout=60)
    return [plain(response) for response in responses]


def refuse(stub, requests):
    """Status and details of requests that must not be answered."""
    refusals = []
    for request in requests:
        try:
            generate(stub, request)
            refusals.append(["OK", ""])
        except grpc.RpcError as error:
            refusals.append([error.code().name, error.details()])
    return refusals


def look(stub, _):
    """What a gateway asks before it sends anything."""
    return {
        "health": plain(stub.HealthCheck(pb.HealthCheckRequest())),
        "model": plain(stub.GetModelInfo(pb.GetModelInfoRequest())),
        "server": plain(stub.GetServerInfo(pb.GetServerInfoRequest())),
        "loads": plain(stub.GetLoads(pb.GetLoadsRequest())),
    }


def fetch_tokenizer(stub, _):
    """The bundle's files, and whether its digest holds."""
    chunks = list(stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
    data = b"".join(chunk.data for chunk in chunks)
    files = zipfile.ZipFile(io.BytesIO(data))
    return {
        "files": {name: files.read(name).decode() for name in files.namelist()},
        "digest_holds": [chunk.sha256 for chunk in chunks]
        == [""] * (len(chunks) - 1) + [hashlib.sha256(data).hexdigest()],
    }


def abort(stub, request):
    """Aborts a stream after its first message; the ends it then gets, and what another id of that name gets before."""
    responses = stub.Generate(json_format.ParseDict(request, pb.GenerateRequest()), timeout=60)
    next(responses)
    taken = refuse(stub, [request])
    running = stub.GetServerInfo(pb.GetServerInfoRequest()).active_requests
    stub.Abort(pb.AbortRequest(request_ids=["nobody", request["request_id"]]))
    ends = [plain(response)["complete"] for response in responses if response.HasField("complete")]
    return {"taken": taken, "running": running, "ends": ends, "left": left(stub)}


def leave(stub, request):
    """Cancels a stream after its first message."""
    responses = stub.Generate(json_format.ParseDict(request, pb.GenerateRequest()), timeout=60)
    next(responses)
    responses.cancel()
    return {"left": left(stub)}


def left(stub, _=None):
    """Requests under way once there are none, or after a minute."""
    pause = threading.Event()
    for _ in range(600):
        load = stub.GetLoads(pb.GetLoadsRequest()).loads[0]
        if not load.num_total_reqs and not stub.GetServerInfo(pb.GetServerInfoRequest()).active_requests:
            return 0
        pause.wait(0.1)
    return load.num_total_reqs


def missing(stub, _):
    """Statuses of the methods that this engine does not have."""
    calls = [
        lambda: stub.Embed(pb.EmbedRequest()),
        lambda: stub.FlushCache(common_pb2.FlushCacheRequest()),
        lambda: stub.StartProfile(common_pb2.StartProfileRequest()),
        lambda: stub.StopProfile(common_pb2.StopProfileRequest()),
        lambda: list(stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest())),
    ]
    statuses = []
    for call in calls:
        try:
            call()
            statuses.append("OK")
        except grpc.RpcError as error:
            statuses.append(error.code().name)
    return statuses


def plain(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


CASES = {each.__name__: each for each in (generate, refuse, look, fetch_tokenizer, abort, leave, left, missing)}

if __name__ == "__main__":
    case, address, *given = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        print(json.dumps(CASES[case](pb_grpc.VllmEngineStub(channel), json.loads(given[0]) if given else None)))
