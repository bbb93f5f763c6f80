"""What the engine process says arrives whole and in order, and whoever says it never waits."""

from __future__ import annotations

import socket
import threading
import time

from exegpt_jax.runner.events import Tokens
from serving.engine.frames import Frames
from serving.engine.outbox import Outbox
from serving.proto.exegpt.engine.v1 import link_pb2 as pb


def heard(frames: Frames) -> list[str]:
    """Of the next message, what tells it from the others."""
    body = frames.next()
    assert body is not None
    message = pb.FromEngine.FromString(body)
    return [tokens.id for tokens in message.events.tokens] or [message.said.line]


def test_a_reader_that_stands_still_holds_up_nobody_and_misses_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours)
        said: list[list[str]] = []
        begin_s = time.monotonic()
        # Several times what the socket holds; short and long in turns, so that both ways out are taken.
        for number in range(300):
            names = [f"{number}.{row}" for row in range(1 if number % 3 else 100)]
            said.append(names)
            outbox.put([Tokens(name, tuple(range(50)), None) for name in names])
            said.append([f"line {number}"])
            outbox.put(pb.FromEngine(said=pb.Said(line=f"line {number}")))
        assert time.monotonic() - begin_s < 10
        frames = Frames(theirs)
        assert [heard(frames) for _ in said] == said


def test_many_speakers_are_heard_each_in_its_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours)

        def speak(name: str) -> None:
            for number in range(200):
                outbox.put([Tokens(f"{name} {number}", (1,), None)] * (1 + number % 12))

        speakers = [threading.Thread(target=speak, args=(name,)) for name in "abc"]
        for speaker in speakers:
            speaker.start()
        frames = Frames(theirs)
        found = [heard(frames) for _ in range(600)]
        for name in "abc":
            own = [names for names in found if names[0].startswith(name)]
            assert own == [[f"{name} {number}"] * (1 + number % 12) for number in range(200)]


def test_what_is_short_goes_out_on_the_thread_that_says_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ours)
        theirs.setblocking(False)
        for number in range(100):
            outbox.put([Tokens(str(number), (1,), None)])
            # There already: nothing has been waited for.
            assert theirs.recv(2**16)


def test_nobody_listens_any_more() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        outbox = Outbox(ours)
        theirs.close()
        for _ in range(10):
            outbox.put([Tokens("x", (1,), None)])
            outbox.put([Tokens("x", (1,), None)] * 100)
