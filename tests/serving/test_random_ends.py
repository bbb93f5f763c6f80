"""Random cancels, deadlines and disconnects over every kind of call leave nothing behind: no row, no byte of cache, no
place of a key, no live request, task or descriptor, no memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from serving.client import make_request
from serving.proto.exegpt.v1 import admin_pb2_grpc
from serving.proto.exegpt.v1 import generation_pb2 as pb
from serving.proto.exegpt.v1 import generation_pb2_grpc as pb_grpc
from serving.proto.inference import inference_pb2 as triton
from serving.proto.inference import inference_pb2_grpc as triton_grpc
from tests.serving.cut_line import CutLine
from tests.serving.left_behind import descriptors, left_behind, resident_bytes, settled
from tests.serving.open_inference import ask
from tests.serving.servers import faults, server_process

KEY, LIMIT, AT_ONCE = "a-key-0123456789", 48, 32
METADATA = (("authorization", f"Bearer {KEY}"),)
FLAGS = ("--engine=fake", "--fake_step_s=0.002", "--decode_iterations=4", "--max_rows=16", f"--key_limit={LIMIT}")
_MIB = 2**20
EXPECTED = {
    *("OK", "CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"),
    # The line was cut.
    *("UNAVAILABLE", "forgotten"),
}
Call = Any


class Caller:
    """Makes calls that end in random ways, over a line that is cut now and then.

    Attributes:
      codes: how they ended.
    """

    def __init__(self, address: str, model: str, seed: int) -> None:
        self.codes: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._address, self._model = address, model
        self._kinds: list[Callable[[grpc.aio.Channel], Awaitable[None]]] = [
            *(self._generate, self._session, self._infer, self._stream_infer)
        ]

    async def ends(self, count: int) -> None:
        async with CutLine(self._address).laid() as line:
            left = count
            while left > 0:
                async with grpc.aio.insecure_channel(line.address) as channel:
                    now = min(left, self._rng.randint(4, 12))
                    calls = [asyncio.create_task(self._one(channel)) for _ in range(now)]
                    if self._rng.random() < 0.3:
                        await asyncio.sleep(self._rng.uniform(0.0, 0.2))
                        line.cut()
                    await asyncio.gather(*calls)
                    left -= now

    async def _one(self, channel: grpc.aio.Channel) -> None:
        try:
            await self._rng.choice(self._kinds)(channel)
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            # Whatever else is unavailable, the line is: the server refuses nobody for now. And grpc.aio forgets the
            # status where a call ends while its client writes.
            told = "refused" if "try again" in details else error.code().name
            self.codes["forgotten" if details.startswith("Internal error from Core") else told] += 1
        except asyncio.CancelledError:
            self.codes["CANCELLED"] += 1
        else:
            self.codes["OK"] += 1

    def _deadline(self) -> float | None:
        return self._rng.choice([None, None, 0.0005, 0.005, self._rng.uniform(0.01, 0.4)])

    def _prompt(self) -> Any:
        chat = [{"role": "user", "content": "hello"}]
        # Long ones and conversations are tokenised on another thread.
        return self._rng.choice(["x", "a b c", [1, 2, 3], chat, "ab " * 1000, ""])

    def _request(self, name: str = "") -> pb.GenerateRequest:
        tokens = self._rng.choice([1, 4, 40, 100, 10**6])
        stop = self._rng.choice([[], ["e"], ["zz", "a"]])
        request = make_request(self._prompt(), name, max_tokens=tokens, ignore_eos=True, stop=stop)
        if self._rng.random() < 0.3:
            request.timeout_s = self._rng.uniform(0.001, 0.3)
        return request

    async def _read(self, call: Call) -> None:
        """Some of it, or all; then it is left."""
        enough = self._rng.choice([0, 1, 2, 5, 10**6])
        if enough == 0:
            await asyncio.sleep(self._rng.choice([0.0, 0.0, 0.001, 0.02]))
        async for _ in call:
            if (enough := enough - 1) <= 0:
                break
        call.cancel()

    async def _generate(self, channel: grpc.aio.Channel) -> None:
        stub = pb_grpc.GenerationStub(channel)
        await self._read(stub.Generate(self._request(), timeout=self._deadline(), metadata=METADATA))

    async def _session(self, channel: grpc.aio.Channel) -> None:
        async def messages() -> AsyncIterator[pb.GenerateStreamRequest]:
            for number in range(self._rng.randint(1, 3)):
                names = [f"{number}-{each}" for each in range(self._rng.randint(1, 4))]
                yield pb.GenerateStreamRequest(requests=[self._request(name) for name in names])
                if self._rng.random() < 0.5:
                    await asyncio.sleep(self._rng.uniform(0, 0.05))
                yield pb.GenerateStreamRequest(cancel_ids=self._rng.sample(names, self._rng.randint(0, len(names))))

        stub = pb_grpc.GenerationStub(channel)
        await self._read(stub.GenerateStream(messages(), timeout=self._deadline(), metadata=METADATA))

    def _asked(self, **inputs: object) -> triton.ModelInferRequest:
        sampling = {"max_tokens": self._rng.choice([1, 10, 60]), "temperature": 1.0, "n": self._rng.choice([1, 1, 3])}
        return ask(
            self._model, text_input=self._rng.choice(["x", "ab " * 1000]), sampling_parameters=sampling, **inputs
        )

    async def _infer(self, channel: grpc.aio.Channel) -> None:
        stub = triton_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer(self._asked(), timeout=self._deadline(), metadata=METADATA)
        if self._rng.random() < 0.5:
            await asyncio.sleep(self._rng.uniform(0, 0.05))
            call.cancel()
        await call

    async def _stream_infer(self, channel: grpc.aio.Channel) -> None:
        async def messages() -> AsyncIterator[triton.ModelInferRequest]:
            for _ in range(self._rng.randint(1, 4)):
                yield self._asked(stream=self._rng.random() < 0.7)

        stub = triton_grpc.GRPCInferenceServiceStub(channel)
        await self._read(stub.ModelStreamInfer(messages(), timeout=self._deadline(), metadata=METADATA))


async def random_ends(address: str, model: str, count: int, seed: int) -> Counter[str]:
    callers = [Caller(address, model, seed * AT_ONCE + number) for number in range(4)]
    await asyncio.gather(*(caller.ends(count // len(callers)) for caller in callers))
    return sum((caller.codes for caller in callers), Counter())


async def all_places_of_the_key(address: str) -> list[str]:
    """How as many requests end as the key may have at once."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.GenerationStub(channel)

        async def one() -> str:
            try:
                async for _ in stub.Generate(make_request("x", max_tokens=60, ignore_eos=True), metadata=METADATA):
                    pass
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return "OK"

        return await asyncio.gather(*(one() for _ in range(LIMIT)))


def test_random_ends_leave_nothing_behind(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    rounds, count = 10, 1000 if full else 100
    keys = tmp_path / "keys"
    keys.write_text(f"caller client {KEY}\n")
    flags = (*FLAGS, f"--keys={keys}", f"--admin_socket={tmp_path / 'admin'}")
    codes: Counter[str] = Counter()
    resident: list[int] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(server_process(tiny_model, *flags))
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{tmp_path / 'admin'}"))
        admin = admin_pb2_grpc.AdminStub(channel)
        left_behind(admin)
        quiet = left_behind(admin)
        opened = descriptors(server)
        for number in range(rounds):
            codes += asyncio.run(random_ends(server.address, tiny_model.resolve().name, count, number))
            settled(admin, quiet)
            resident.append(resident_bytes(server))
        assert set(asyncio.run(all_places_of_the_key(server.address))) == {"OK"}
        settled(admin, quiet)
        assert descriptors(server) <= opened + 4
        server.terminate()
        status, _, err = server.finish()
    assert sum(codes.values()) == rounds * count
    # Each way of ending came up, and no other one.
    assert set(codes) <= EXPECTED
    assert all(codes[code] for code in EXPECTED - {"forgotten", "RESOURCE_EXHAUSTED"})
    grown = resident[-1] - resident[rounds // 2]
    print(f"{dict(codes)}; resident {[round(each / _MIB, 1) for each in resident]} MiB")
    assert grown < 8 * _MIB
    assert status == 0
    assert faults(err) == []
