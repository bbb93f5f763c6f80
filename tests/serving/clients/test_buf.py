"""`buf curl`: knows no proto of ours, asks server reflection, and calls what it finds. `buf lint`: has them all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serving.client import Client
from tests.serving.clients import foreign
from tests.serving.servers import RunningServer

BUF = foreign.ENVIRONMENT / "node_modules" / ".bin" / "buf"
pytestmark = pytest.mark.skipif(
    not BUF.exists(), reason="foreign clients: no buf in .venv-clients; .ci/run clients installs it where npm is"
)


@pytest.fixture
def buf(server: RunningServer, tmp_path: Path) -> Any:
    """Calls `buf curl`; what it prints."""

    def call(method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BUF), "curl", "--protocol=grpc", "--http2-prior-knowledge", *arguments]
        # Its cache stays out of the home directory.
        return subprocess.run(
            [*command, f"http://{server.address}{method}"],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HOME": str(tmp_path)},
            check=False,
        )

    return call


def messages(text: str) -> list[Any]:
    """Objects one behind the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        value, place = decoder.raw_decode(text, place)
        found.append(value)
        place += 1
    return found


def test_reflection_lists_services_and_methods(buf: Any) -> None:
    listed = buf("", "--list-services").stdout.split()
    assert {"exegpt.v1.Generation", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(listed)
    methods = buf("", "--list-methods").stdout.split()
    assert {"exegpt.v1.Generation/GenerateStream", "inference.GRPCInferenceService/ModelStreamInfer"} <= set(methods)


def test_a_call_streams_its_answer(server: RunningServer, buf: Any) -> None:
    with Client(server.address) as client:
        reply = client.generate("hello", max_tokens=12, ignore_eos=True)
    asked = {"text": "hello", "parameters": {"maxTokens": 12, "ignoreEos": True}}
    done = buf("/exegpt.v1.Generation/Generate", f"--data={json.dumps(asked)}")
    assert done.returncode == 0, done.stderr
    told = messages(done.stdout)
    assert [token for each in told for token in each["tokenIds"]] == list(reply.token_ids)
    assert told[-1]["finish"]["reason"] == "FINISH_REASON_LENGTH"


def test_a_stream_of_the_other_protocol(buf: Any) -> None:
    ids = {"name": "input_ids", "datatype": "INT32", "shape": [2], "contents": {"intContents": [5, 6]}}
    good = {"modelName": "model_tokens", "id": "good", "inputs": [ids], "parameters": {"max_tokens": {"int64Param": 3}}}
    done = buf(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        f"--data={json.dumps(good)}{json.dumps({'modelName': 'other', 'id': 'bad'})}",
    )
    assert done.returncode == 0, done.stderr
    told = {each["inferResponse"]["id"]: each for each in messages(done.stdout)}
    assert told["good"]["inferResponse"]["outputs"] == [{"name": "output_ids", "datatype": "INT32", "shape": ["3"]}]
    assert told["bad"]["errorMessage"].startswith("[request id: bad] model_name: 'other' is not served")


def test_a_refusal_has_its_code_and_line(buf: Any) -> None:
    asked = {"text": "hello", "parameters": {"temperature": 7}}
    done = buf("/exegpt.v1.Generation/Generate", f"--data={json.dumps(asked)}")
    assert done.returncode != 0
    refused = json.loads(done.stderr)
    assert (refused["code"], refused["message"]) == (
        "invalid_argument",
        "temperature: 7.0 is not a number in [0, 2]",
    )


def test_lint(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(foreign.ROOT / "serving" / "proto", protos, ignore=shutil.ignore_patterns("*.py*"))

    def lint() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BUF), "lint", str(protos)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HOME": str(tmp_path)},
            check=False,
        )

    assert (lint().returncode, lint().stdout) == (0, "")
    proto = protos / "exegpt" / "v1" / "generation.proto"
    proto.write_text(proto.read_text() + "\nmessage lower_case {}\n")
    assert 'Message name "lower_case" should be PascalCase' in lint().stdout
