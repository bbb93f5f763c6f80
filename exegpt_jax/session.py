"""A running engine for callers with threads: ask, and read the answers on your own thread.

The Runner's thread only sorts its lists of events into the inboxes of those who asked; text is made by whoever reads.
`complete_in_order` drives any number of requests through a bounded window, for files and for `LLM.generate`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Generic, TypeVar, cast

from exegpt_jax.engine.api import Executor
from exegpt_jax.runner.events import Event, Tokens
from exegpt_jax.runner.follow import Follower
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.text.answer import Answer, Ending, Piece, TokenLogprobs
from exegpt_jax.text.prompts import ModelText, Prepared
from solver.plan.plan import Plan
from solver.plan.timeline import Predictor

_Key = TypeVar("_Key")


@dataclasses.dataclass(frozen=True)
class Completion:
    """A whole answer.

    Attributes:
      text: without the stop string or stop token.
      token_ids: the stop token included.
      finish_reason: "stop" or "length".
      stop_reason: the stop token or stop string, where one ended it.
      prompt_tokens, completion_tokens: usage.
      seed: the seed that was used.
      seed_drawn: it was drawn, and mattered.
      logprobs: one per token, where asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: int | str | None
    prompt_tokens: int
    completion_tokens: int
    seed: int
    seed_drawn: bool
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """A request that got no answer, and why, in one line."""

    error: str


class Session:
    """A Runner on its own thread, and the inboxes of those who asked it something."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        text: ModelText,
        predictor: Predictor | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.text = text
        self._inboxes: dict[str, queue.SimpleQueue[object]] = {}
        self._numbers = itertools.count()
        self.runner = Runner(plan, executor, self._route, predictor=predictor, follower=follower)
        self.runner.start()

    def conversation(self) -> Conversation:
        return Conversation(self)

    def submit(self, prepared: Prepared, inbox: queue.SimpleQueue[object]) -> str:
        """Queues a request whose events go to `inbox`; returns its id. Raises ValueError if it can never fit."""
        request_id = str(next(self._numbers))
        self._inboxes[request_id] = inbox
        try:
            self.runner.submit(
                Request(request_id, prepared.prompt_ids, prepared.parameters.sampling, arrival_s=time.monotonic())
            )
        except ValueError:
            self.forget(request_id)
            raise
        return request_id

    def forget(self, request_id: str) -> None:
        """Events of this request go nowhere from now on."""
        self._inboxes.pop(request_id, None)

    def close(self) -> None:
        """Stops the Runner; requests under way are lost."""
        self.runner.stop()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _route(self, events: list[Event]) -> None:
        """On the Runner's thread: one put per inbox and list."""
        sorted_events: dict[int, tuple[queue.SimpleQueue[object], list[Event]]] = {}
        for event in events:
            inbox = self._inboxes.get(event.id)
            if inbox is not None:
                sorted_events.setdefault(id(inbox), (inbox, []))[1].append(event)
        for inbox, own in sorted_events.values():
            inbox.put(own)


class Conversation:
    """The requests of one reader. Not safe to share between threads.

    Attributes:
      inbox: lists of events arrive here, among whatever else the reader puts in.
    """

    def __init__(self, session: Session) -> None:
        self.inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._session = session
        self._live: dict[str, _Growing] = {}

    def ask(self, prepared: Prepared) -> str:
        """Queues a request; returns its id. Raises ValueError if it can never fit."""
        request_id = self._session.submit(prepared, self.inbox)
        self._live[request_id] = _Growing(prepared, Answer(prepared.parameters, self._session.text.tokenizer))
        return request_id

    def wait(self) -> list[Event]:
        """The next list of events; for a reader that puts nothing else into its inbox."""
        return cast("list[Event]", self.inbox.get())

    def read(self, events: Sequence[Event]) -> Iterator[tuple[str, Piece | Completion | Failure]]:
        """What a list of events means: pieces of answers, and behind its last piece the whole of one that ended."""
        for event in events:
            growing = self._live.get(event.id)
            if growing is None:
                continue  # cancelled, or ended by a stop string before the Runner knew
            if isinstance(event, Tokens):
                piece = growing.add(growing.answer.push(event.token_ids, event.logprobs))
            elif event.reason in ("stop", "length"):
                piece = growing.add(growing.answer.finish(event.reason, event.stop_token))
            else:
                self._end(event.id)
                yield event.id, Failure(f"{event.reason}: {event.detail}" if event.detail else event.reason)
                continue
            yield event.id, piece
            if piece.ending is not None:
                if isinstance(event, Tokens):
                    self._session.runner.cancel(event.id)
                self._end(event.id)
                yield event.id, growing.completion(piece.ending)

    def cancel_all(self) -> None:
        """Gives up whatever is still under way."""
        for request_id in list(self._live):
            self._session.runner.cancel(request_id)
            self._end(request_id)

    def _end(self, request_id: str) -> None:
        del self._live[request_id]
        self._session.forget(request_id)


class _Growing:
    """One answer's pieces so far."""

    def __init__(self, prepared: Prepared, answer: Answer) -> None:
        self.prepared = prepared
        self.answer = answer
        self._pieces: list[Piece] = []

    def add(self, piece: Piece) -> Piece:
        self._pieces.append(piece)
        return piece

    def completion(self, ending: Ending) -> Completion:
        return Completion(
            text="".join(piece.text for piece in self._pieces),
            token_ids=tuple(token for piece in self._pieces for token in piece.token_ids),
            finish_reason=ending.reason,
            stop_reason=ending.stop_reason,
            prompt_tokens=len(self.prepared.prompt_ids),
            completion_tokens=ending.completion_tokens,
            seed=self.prepared.parameters.sampling.seed,
            seed_drawn=self.prepared.parameters.seed_drawn,
            logprobs=tuple(entry for piece in self._pieces for entry in piece.logprobs),
        )


@dataclasses.dataclass
class _Slot(Generic[_Key]):
    """One item's place in the order, and its outcome once there is one."""

    key: _Key
    outcome: Completion | Failure | None = None


@dataclasses.dataclass(frozen=True)
class _Arrived(Generic[_Key]):
    """From the reading thread: the next item, or the end (with what ended it, if that was an error)."""

    entry: tuple[_Key, Prepared | Failure] | None
    error: BaseException | None = None


def complete_in_order(
    session: Session, items: Iterable[tuple[_Key, Prepared | Failure]], window: int
) -> Iterator[tuple[_Key, Completion | Failure]]:
    """Answers items in their order, with at most `window` of them read and not yet returned.

    `items` is iterated on a thread of its own, so that reading and tokenising overlap with the engine and a slow source
    holds no finished answer back. A Failure passes through in its place. What `items` raises is raised here.
    """
    conversation = session.conversation()
    inbox = conversation.inbox
    room = threading.Semaphore(window)
    closed = threading.Event()

    def read_items() -> None:
        try:
            for entry in items:
                room.acquire()
                if closed.is_set():
                    return
                inbox.put(_Arrived(entry))
        # Raised again on the thread that waits for the answers.
        except BaseException as error:
            inbox.put(_Arrived(None, error))
        else:
            inbox.put(_Arrived(None))

    threading.Thread(target=read_items, name="read items", daemon=True).start()
    slots: collections.deque[_Slot[_Key]] = collections.deque()
    by_id: dict[str, _Slot[_Key]] = {}
    ended = False
    try:
        while not ended or slots:
            message = inbox.get()
            if isinstance(message, list):
                for request_id, found in conversation.read(message):
                    if not isinstance(found, Piece):
                        by_id.pop(request_id).outcome = found
            elif isinstance(message, _Arrived):
                if message.error is not None:
                    raise message.error
                ended = message.entry is None
                if message.entry is not None:
                    slots.append(_begin(conversation, by_id, *message.entry))
            while slots and (outcome := slots[0].outcome) is not None:
                key = slots.popleft().key
                room.release()
                yield key, outcome
    finally:
        closed.set()
        room.release()
        conversation.cancel_all()


def _begin(
    conversation: Conversation, by_id: dict[str, _Slot[_Key]], key: _Key, item: Prepared | Failure
) -> _Slot[_Key]:
    slot = _Slot(key)
    if isinstance(item, Failure):
        slot.outcome = item
        return slot
    try:
        by_id[conversation.ask(item)] = slot
    except ValueError as error:
        slot.outcome = Failure(str(error))
    return slot
