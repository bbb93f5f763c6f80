"""Compiling ahead: many programs at once, kept on disk between runs, counted when they come too late.

Tracing is serial (it holds Python), XLA's compilation runs in threads. The persistent cache keeps every executable, so
a second start of the same plan compiles nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_lock = threading.Lock()
_compilations = 0
_listening = False


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
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
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


def listen() -> None:
    """Begins to count compilations in this process."""
    global _listening
    with _lock:
        if not _listening:
            jax.monitoring.register_event_duration_secs_listener(_on_event)
            _listening = True


def _on_event(event: str, duration_secs: float, **_: str | int) -> None:
    global _compilations
    if event == _EVENT:
        with _lock:
            _compilations += 1


def compilations() -> int:
    """How many programs this process has compiled since `listen`."""
    return _compilations


@contextlib.contextmanager
def forbid_compilations() -> Iterator[None]:
    """Raises AssertionError if anything was compiled inside."""
    listen()
    before = compilations()
    yield
    if compilations() != before:
        raise AssertionError(f"{compilations() - before} programs were compiled where none may be")
