"""Keys: every method that the server has registered is closed without one, and each kind opens what its list says."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import AsyncClient, Client, ServerError
from serving.security.keys import Keyring, parse_keys
from serving.security.methods import BY_KIND, OPEN
from serving.server import ServerOptions
from tests.serving.reflected import bearer, code_of, registered_methods
from tests.serving.servers import RunningServer, fake_service, running_server

KEY, DIGESTED, WATCHER = "k-4f6d8b1a9c3e5071", "d-91b2c3d4e5f60718", "m-0123456789abcdef"
LIMIT = 3
FILE = f"""
# who      kind     key
gateway    client   {KEY}
batch      client   sha256:{hashlib.sha256(DIGESTED.encode()).hexdigest()}
grafana    monitor  {WATCHER}
"""


@pytest.fixture(scope="module")
def locked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(FILE)
    options = ServerOptions("127.0.0.1:0", keys=path, key_limit=LIMIT)
    with running_server(fake_service(tiny_model, fake_step_s=0.002), options=options) as running:
        yield running


def test_every_registered_method_but_the_health_check_refuses_without_a_key(locked: RunningServer) -> None:
    methods = registered_methods(locked.address, KEY)
    assert {"/exegpt.v1.Generation/Generate", "/grpc.health.v1.Health/Watch"} <= set(methods)
    wrong = (
        (),
        bearer("k-4f6d8b1a9c3e5072"),
        bearer(""),
        bearer(KEY + " "),
        (("authorization", KEY),),
        (("authorization", f"Basic {KEY}"),),
        (*bearer("another key"), *bearer(KEY)),
        (("x-api-key", KEY),),
    )
    for method in methods:
        codes = {code_of(locked.address, method, metadata) for metadata in wrong}
        assert codes == ({"OPEN"} if method == "/grpc.health.v1.Health/Check" else {"UNAUTHENTICATED"}), method


def test_every_registered_method_stands_in_the_table(locked: RunningServer) -> None:
    """A method that nobody listed would be closed to everybody."""
    assert set(registered_methods(locked.address, KEY)) <= BY_KIND["client"] | OPEN


@pytest.mark.parametrize(
    "method",
    ["/exegpt.v1.Generation/generate", "/exegpt.v1.generation/Generate", "/exegpt.v1.Generation//Generate", "/x.Y/Z"],
)
def test_another_spelling_is_another_method_and_closed(locked: RunningServer, method: str) -> None:
    assert code_of(locked.address, method, ()) == "UNAUTHENTICATED"
    assert code_of(locked.address, method, bearer(KEY)) == "PERMISSION_DENIED"


def test_each_kind_opens_its_methods(locked: RunningServer) -> None:
    for key in (KEY, DIGESTED):
        with Client(locked.address, key=key) as client:
            assert client.generate("x", max_tokens=3).finish.completion_tokens == 3
    with Client(locked.address, key=WATCHER) as client, pytest.raises(ServerError) as refusal:
        client.generate("x")
    assert str(refusal.value) == ("PERMISSION_DENIED: authorization: a key of kind monitor does not open this method")
    assert code_of(locked.address, "/grpc.health.v1.Health/Watch", bearer(WATCHER)) == "OPEN"
    assert BY_KIND["monitor"] < BY_KIND["client"]


def test_calls_of_one_key_are_limited_and_others_go_on(locked: RunningServer) -> None:
    with Client(locked.address, key=KEY) as client, Client(locked.address, key=DIGESTED) as other:
        streams = [client.stream("x", max_tokens=200, ignore_eos=True) for _ in range(LIMIT)]
        for stream in streams:
            next(stream)
        with pytest.raises(ServerError, match=f"RESOURCE_EXHAUSTED: {LIMIT} calls of this key"):
            client.generate("x")
        assert other.generate("x", max_tokens=2).finish.completion_tokens > 0
        streams.pop().close()
        # The server hears of it a moment later.
        for attempt in range(100):
            try:
                assert client.generate("x", max_tokens=2).finish.completion_tokens > 0
                break
            except ServerError as error:
                if error.code != "RESOURCE_EXHAUSTED" or attempt == 99:
                    raise
        for stream in streams:
            stream.close()


def test_requests_of_one_call_are_limited_too(locked: RunningServer) -> None:
    async def ask() -> list[object]:
        async with AsyncClient(locked.address, key=KEY) as client, client.session() as session:
            several = [session.generate("x", max_tokens=30, ignore_eos=True) for _ in range(LIMIT + 2)]
            first = await asyncio.gather(*several, return_exceptions=True)
            return [*first, await session.generate("x", max_tokens=2)]

    *first, later = asyncio.run(ask())
    refused = [str(each) for each in first if isinstance(each, ServerError)]
    assert refused == [f"RESOURCE_EXHAUSTED: {LIMIT} requests of this key are under way, which is its limit"] * 2
    assert not isinstance(later, ServerError)


def test_a_session_carries_its_key(locked: RunningServer) -> None:
    async def ask(key: str) -> int:
        async with AsyncClient(locked.address, key=key) as client, client.session() as session:
            return (await session.generate("x", max_tokens=3)).finish.completion_tokens

    assert asyncio.run(ask(KEY)) == 3
    with pytest.raises(ServerError, match="UNAUTHENTICATED"):
        asyncio.run(ask("x" * 20))


def test_probes_need_no_key(locked: RunningServer) -> None:
    with grpc.insecure_channel(locked.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_file_that_everybody_can_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(FILE)
    path.chmod(0o640)
    Keyring(path)
    assert not caplog.records
    path.chmod(0o644)
    Keyring(path)
    (record,) = caplog.records
    assert "can be read by every user" in record.getMessage()


def test_a_changed_file_counts_and_a_broken_one_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(FILE)
    keyring = Keyring(path)
    assert keyring.find(f"bearer {KEY}") == keyring.find(f"Bearer {KEY}")
    other = "another-key-4711-0815"
    path.write_text(FILE.replace(KEY, other))
    keyring.reload()
    assert keyring.find(f"Bearer {KEY}") is None
    found = keyring.find(f"Bearer {other}")
    assert found is not None
    assert found.name == "gateway"
    for broken in ("", "gateway client", "gateway client short"):
        path.write_text(broken)
        keyring.reload()
        assert keyring.find(f"Bearer {other}") == found
        assert "cannot be used" in caplog.records[-1].getMessage()
    os.unlink(path)
    keyring.reload()
    assert keyring.find(f"Bearer {other}") == found
    assert not any(key in record.getMessage() for record in caplog.records for key in (KEY, other, "short)"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "keys: the file holds none"),
        ("# nothing", "keys: the file holds none"),
        (f"\n{KEY}", "keys: line 2: has 1 words; give three: NAME KIND KEY"),
        (f"a/b client {KEY}", "keys: line 1: the name is not 1 to 64"),
        (f"a admin {KEY}", "keys: line 1: kind 'admin' of a is unknown; choose one of client, monitor"),
        ("a client tooshort", "keys: line 1: the key of a is not at least 16 ASCII characters"),
        ("a client sha256:ABC", "keys: line 1: the digest of a is not sha256:"),
        (f"a client {KEY}\nb client {KEY}", "keys: two lines hold the same key"),
    ],
)
def test_a_bad_file_is_one_line_without_the_key(text: str, line: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_keys(text)
    assert str(refusal.value).startswith(line)
    assert KEY not in str(refusal.value)
