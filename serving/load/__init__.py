"""A load on a server and what came back: one loop of one process, or a fleet of them as `exegpt load` runs it."""

from serving.load.loop import Loop, run_load, run_load_async
from serving.load.results import LoadRequest, LoadResult
from serving.load.summary import LoadSummary, percentile, summarise

__all__ = [
    "LoadRequest",
    "LoadResult",
    "LoadSummary",
    "Loop",
    "percentile",
    "run_load",
    "run_load_async",
    "summarise",
]
