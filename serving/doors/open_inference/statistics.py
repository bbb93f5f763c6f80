"""What a model has answered since the server started, as ModelStatistics tells it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from serving.doors.open_inference.models import VERSION
from serving.live_request import Update
from serving.proto.inference import inference_pb2 as pb

_NS = 1e9
_MS = 1e3


@dataclasses.dataclass
class Duration:
    """How often, and how long together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=round(self.seconds * _NS))


class Statistics:
    """Of one model; lives on the event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_s = 0.0
        self._success, self._fail, self._queue, self._compute = Duration(), Duration(), Duration(), Duration()

    def answered(self, updates: Sequence[Update]) -> None:
        """With the last update of each of a request's answers."""
        self._last_s = time.time()
        last_s, encode_start_s = max(update.last_token_s for update in updates), updates[0].encode_start_s
        self._success.add(last_s)
        # Not known where a stop string ended the answer before the engine reported.
        if encode_start_s is not None:
            self._queue.add(encode_start_s)
            self._compute.add(last_s - encode_start_s)

    def failed(self, seconds: float) -> None:
        """Refused, cancelled or lost after so long."""
        self._fail.add(seconds)

    def message(self) -> pb.ModelStatistics:
        return pb.ModelStatistics(
            name=self._name,
            version=VERSION,
            last_inference=round(self._last_s * _MS),
            inference_count=self._success.count,
            # Models without a batch dimension execute once a request, in Triton's count.
            execution_count=self._success.count,
            inference_stats=pb.InferStatistics(
                success=self._success.message(),
                fail=self._fail.message(),
                queue=self._queue.message(),
                compute_infer=self._compute.message(),
            ),
        )
