"""The answers to one request, n of them side by side: each response of this protocol tells of all."""

from __future__ import annotations

import time
from collections.abc import Callable

from exegpt_jax.text.answer import Ending
from serving.doors.open_inference.requests import Asked
from serving.frontend import Frontend
from serving.live_request import Live, Update


class Answers:
    """Begin them, take what they have gained, and `close` whatever happened.

    Attributes:
      arrival_s: on time.monotonic's clock.
    """

    def __init__(self, frontend: Frontend) -> None:
        self.arrival_s = time.monotonic()
        self._frontend = frontend
        self._lives: list[Live] = []
        self._told: set[Live] = set()

    async def begin(
        self, asked: Asked, call_deadline_s: float | None, wake: Callable[[], None], request_id: str
    ) -> None:
        """Admits all of them or raises, as `Frontend.begin`; the earlier of the call's deadline and their own counts.

        Bad input is named as this protocol names it: the prompt by its tensor."""
        own_s = None if asked.timeout_s is None else self.arrival_s + asked.timeout_s
        deadline_s = min((each for each in (call_deadline_s, own_s) if each is not None), default=None)
        fields = dict(asked.fields)
        try:
            for _ in range(asked.count):
                live = await self._frontend.begin(fields, deadline_s, wake, request_id)
                self._lives.append(live)
                sampling = live.prepared.parameters.sampling
                if asked.count > 1 and sampling.temperature == 0:
                    raise ValueError(f"n: {asked.count} answers without sampling are all the same; give a temperature")
                # Tokenised once; seeds in a row make the whole set repeatable.
                fields.update(prompt=live.prepared.prompt_ids, seed=sampling.seed + 1)
        except BaseException as error:
            self.close()
            if isinstance(error, ValueError) and str(error).startswith("prompt"):
                raise ValueError(asked.model.prompt + str(error).removeprefix("prompt")) from error
            raise

    @property
    def has_news(self) -> bool:
        return any(live.has_news for live in self._lives if live not in self._told)

    @property
    def ended(self) -> bool:
        """Whether all have ended, or one other than well, which ends the request."""
        endings = [live.ending for live in self._lives]
        return None not in endings or not all(each is None or isinstance(each, Ending) for each in endings)

    def take(self) -> list[Update]:
        """Of each answer, in their order. Raises as `Live.take`."""
        updates = [live.take() for live in self._lives]
        self._told.update(live for live in self._lives if live.ending is not None)
        return updates

    def close(self) -> None:
        """Gives back what is under way."""
        while self._lives:
            self._frontend.end(self._lives.pop())
