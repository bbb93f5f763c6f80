"""What was measured so far, in a file beside the output: a killed measurement goes on where it was.

The first line holds the fingerprint of everything that a time depends on (model, dtypes, limits, versions, devices).
A file with another fingerprint is begun anew; a line cut short by a kill is dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from exegpt_jax.profiler.probe import Sample


def fingerprint(facts: Mapping[str, object]) -> str:
    """A hash of facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Journal:
    """Samples by the key of their point.

    Attributes:
      samples: of this run and of those it continues.
      resumed: samples that were there already.
    """

    def __init__(self, path: Path, mark: str, *, resume: bool = True) -> None:
        self.samples: dict[str, list[Sample]] = collections.defaultdict(list)
        kept = _read(path, mark) if resume else []
        for key, sample in kept:
            self.samples[key].append(sample)
        self.resumed = len(kept)
        # Written again as a whole, so that a line cut short does not swallow the next one.
        lines = [json.dumps({"fingerprint": mark}), *(_line(key, sample) for key, sample in kept)]
        partial = path.with_name(path.name + ".new")
        partial.write_text("".join(line + "\n" for line in lines))
        partial.replace(path)
        self._file = path.open("a")

    def add(self, key: str, sample: Sample) -> None:
        """Keeps a sample, on disk before the next is taken."""
        self.samples[key].append(sample)
        self._file.write(_line(key, sample) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(key: str, sample: Sample) -> str:
    return json.dumps({"point": key, **dataclasses.asdict(sample)})


def _read(path: Path, mark: str) -> list[tuple[str, Sample]]:
    """The samples of a file with this fingerprint; nothing where there is none."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if number == 0:
                if entry["fingerprint"] != mark:
                    return []
                continue
            found.append((entry.pop("point"), Sample(**entry)))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == 0:
                return []
            break
    return found
