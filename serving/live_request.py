"""A request while it is answered: tokens come in as the Runner hands them over, and go out as its reader takes them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from exegpt_jax.runner.events import Finished, Tokens
from exegpt_jax.text.answer import Answer, Ending, TokenLogprobs
from exegpt_jax.text.prompts import ModelText, Prepared
from serving.admission.refusals import DeadlinePassed, DeadlineUnreachable, Unavailable, draining
from serving.admission.ticket import Forecast
from serving.security.caller import CALLER
from serving.telemetry.tally import Ended, Outcome
from serving.telemetry.trace_parent import TRACE_PARENT


class GenerationFailed(Exception):
    """The engine lost the request."""


@dataclasses.dataclass(frozen=True)
class Update:
    """What an answer has gained since the last one; `ending` stands in the last.

    Attributes:
      cumulative_logprob: of all tokens so far; None where log-probabilities were not asked for.
      encode_start_s, first_token_s, last_token_s: from arrival; the first is None where the Runner did not say.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    cumulative_logprob: float | None = None
    ending: Ending | None = None
    seed: int = 0
    prompt_tokens: int = 0
    encode_start_s: float | None = None
    first_token_s: float = 0.0
    last_token_s: float = 0.0


class Live:
    """One request that is being answered: what has come and nobody has taken yet.

    Attributes:
      number: what the Runner calls it.
      request_id: what its client calls it.
      trace_parent: the span that its client is in, as W3C's `traceparent` has it; empty without one.
      caller: the name of its client's key, where the server has keys.
      forecast: when it was predicted to start and to end, where that was known.
      ending: how it ended, once it has.
      tokens: handed over so far.
      first_s, last_s: when the first and the last of them were; 0 without any.
    """

    def __init__(
        self, number: str, prepared: Prepared, text: ModelText, wake: Callable[[], None], request_id: str = ""
    ) -> None:
        self.number = number
        self.request_id = request_id or number
        self.trace_parent = TRACE_PARENT.get()
        self.caller = CALLER.get()
        self.prepared = prepared
        self.ending: Ending | Exception | None = None
        self.forecast: Forecast | None = None
        self.arrival_s = time.monotonic()
        self.wake = wake
        self._answer = Answer(prepared.parameters, text.tokenizer)
        self.tokens = 0
        self.first_s = self.last_s = 0.0
        self._encode_start_s: float | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._logprob = 0.0

    def push(self, event: Tokens) -> None:
        self._encode_start_s = event.encode_start_s or None
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s
        piece = self._answer.push(event.token_ids, event.logprobs)
        self._texts.append(piece.text)
        self._token_ids.extend(piece.token_ids)
        self.tokens += len(piece.token_ids)
        if piece.logprobs:
            self._logprobs.extend(piece.logprobs)
            self._logprob += sum(entry.logprob for entry in piece.logprobs)
        self.ending = piece.ending

    def finish(self, event: Finished) -> None:
        self._encode_start_s = event.times.encode_start_s or self._encode_start_s
        if event.reason in ("stop", "length"):
            piece = self._answer.finish(event.reason, event.stop_token)
            self._texts.append(piece.text)
            self.ending = piece.ending
        elif event.reason == "deadline":
            self.ending = DeadlinePassed()
        elif event.reason == "abort":
            self.ending = Unavailable(event.detail, 1.0, "ABORTED") if event.detail else draining()
        else:
            self.ending = GenerationFailed(event.detail)

    def take(self) -> Update:
        """Everything since the last take. Raises what ended the request other than well."""
        if isinstance(self.ending, Exception):
            raise self.ending
        sampling = self.prepared.parameters.sampling
        update = Update(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            cumulative_logprob=None if sampling.logprobs is None else self._logprob,
            ending=self.ending,
            seed=sampling.seed,
            prompt_tokens=len(self.prepared.prompt_ids),
            encode_start_s=None if self._encode_start_s is None else self._encode_start_s - self.arrival_s,
            first_token_s=self.first_s - self.arrival_s,
            last_token_s=self.last_s - self.arrival_s,
        )
        self._texts, self._token_ids, self._logprobs = [], [], []
        return update

    def ended(self) -> Ended:
        """What became of it, when nobody waits for it any more."""
        return Ended(
            request_id=self.request_id,
            outcome=self._outcome(),
            prompt_tokens=len(self.prepared.prompt_ids),
            completion_tokens=self.tokens,
            arrival_s=self.arrival_s,
            encode_start_s=self._encode_start_s or 0.0,
            first_token_s=self.first_s,
            last_token_s=self.last_s,
            ended_s=time.monotonic(),
            detail=str(self.ending) if isinstance(self.ending, GenerationFailed) else "",
            trace_parent=self.trace_parent,
            predicted_start_s=0.0 if self.forecast is None else self.forecast.start_s,
            predicted_end_s=0.0 if self.forecast is None else self.forecast.end_s,
        )

    def _outcome(self) -> Outcome:
        match self.ending:
            case Ending(reason=reason):
                return reason
            case DeadlinePassed() | DeadlineUnreachable():
                return "deadline"
            case GenerationFailed():
                return "error"
            case _:
                return "abort"

    @property
    def has_news(self) -> bool:
        """Whether a take brings anything; held-back characters may make nothing of new tokens."""
        return self.ending is not None or bool(self._token_ids) or any(self._texts)
