"""Compiling ahead: many programs at once, kept on disk between runs, counted when they come too late.

Tracing is serial (it holds Python), XLA's compilation runs in threads. The persistent cache keeps every executable, so
a second start of the same plan compiles nothing. A plan that is to come is compiled `behind` the one that runs: one
program at a time, at low priority, counted apart.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax

_Result = TypeVar("_Result")

_EVENT = "/jax/core/compile/backend_compile_duration"
_BEHIND_NICE = 10
_lock = threading.Lock()
_compilations = _behind = 0
_listening = False
# Whether what this thread compiles is for later.
_here = threading.local()


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled XLA executable.

    Attributes:
      name: phase and bucket, such as "decode 32 rows x 256 tokens".
      run: the executable.
      seconds: tracing and compiling (or reading it from the persistent cache).
      temporary_bytes: beside arguments and results, per device; 0 where the platform does not say.
      aliased_bytes: arguments that results took over in place, per device.
    """

    name: str
    run: jax.stages.Compiled
    seconds: float
    temporary_bytes: int
    aliased_bytes: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A program to be compiled: a name, a jitted function, and the shapes of its arguments."""

    name: str
    function: jax.stages.Wrapped
    arguments: tuple[object, ...]


def keep_on_disk(directory: Path) -> None:
    """Uses `directory` as the persistent compilation cache of this process."""
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def compile_all(recipes: Sequence[Recipe], progress: Callable[[str, int, int], None]) -> tuple[Program, ...]:
    """Compiles every recipe, in order; `progress` hears each name with the number done and the number in all."""
    listen()
    done = 0
    later = getattr(_here, "behind", False)
    workers, begin = (1, _stand_behind) if later else (os.cpu_count() or 1, _stand_in_front)
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers, initializer=begin) as pool:
        waiting = []
        for recipe in recipes:
            began_s = time.perf_counter()
            lowered = recipe.function.lower(*recipe.arguments)
            waiting.append(pool.submit(_finish, recipe.name, lowered, time.perf_counter() - began_s))
        for future in concurrent.futures.as_completed(waiting):
            done += 1
            progress(future.result().name, done, len(recipes))
        return tuple(future.result() for future in waiting)


def _finish(name: str, lowered: jax.stages.Lowered, traced_s: float) -> Program:
    began_s = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return Program(
        name=name,
        run=compiled,
        seconds=traced_s + time.perf_counter() - began_s,
        temporary_bytes=0 if memory is None else memory.temp_size_in_bytes,
        aliased_bytes=0 if memory is None else memory.alias_size_in_bytes,
    )


def compile_behind(work: Callable[[], _Result]) -> _Result:
    """`work` on a thread of its own, which stands behind all others; what it compiles is counted apart."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, initializer=_stand_behind) as pool:
        return pool.submit(work).result()


def _stand_behind() -> None:
    _here.behind = True
    # Linux gives each thread its own priority; elsewhere it would be the whole process's.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BEHIND_NICE)


def _stand_in_front() -> None:
    _here.behind = False


def listen() -> None:
    """Begins to count compilations in this process."""
    global _listening
    with _lock:
        if not _listening:
            jax.monitoring.register_event_duration_secs_listener(_on_event)
            _listening = True


def _on_event(event: str, duration_secs: float, **_: str | int) -> None:
    global _compilations, _behind
    if event == _EVENT:
        later = getattr(_here, "behind", False)
        with _lock:
            _behind += later
            _compilations += not later


def compilations() -> int:
    """How many programs this process has compiled since `listen`, those behind left out."""
    return _compilations


def compiled_behind() -> int:
    """How many it has compiled behind what runs."""
    return _behind


@contextlib.contextmanager
def forbid_compilations() -> Iterator[None]:
    """Raises AssertionError if anything was compiled inside."""
    listen()
    before = compilations()
    yield
    if compilations() != before:
        raise AssertionError(f"{compilations() - before} programs were compiled where none may be")
