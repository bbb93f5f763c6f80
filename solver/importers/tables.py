"""Reading a published table: packed CSV into one array per column, by a folder that the command line may name.

Units stay as published here; each importer turns its own into seconds and bytes.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from solver.facts.workload import Floats

# Beside the checkout, as the project's tests find it.
TABLES = Path(__file__).parents[3] / "shared" / "data"


def read_columns(path: Path, numbers: Sequence[str], where: dict[str, str] | None = None) -> dict[str, Floats]:
    """float64 arrays [rows] of these columns, of the rows whose other columns are as `where` says.

    Raises:
      ValueError: one line: no such file, cut short, a column missing, or a field that is no number.
    """
    wanted = where or {}
    try:
        with gzip.open(path, "rt", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            missing = [name for name in (*numbers, *wanted) if name not in head]
            if missing:
                raise ValueError(f"{path}: no column {missing[0]}; give the tables this importer was written for")
            tests = [(head.index(name), value) for name, value in wanted.items()]
            places = [head.index(name) for name in numbers]
            rows = [[row[i] for i in places] for row in reader if all(row[i] == value for i, value in tests)]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such table; name the folder of published tables with --tables=DIR") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, IndexError) as error:
        raise ValueError(f"{path}: is cut short or no table ({error}); copy it again") from None
    try:
        values = np.array(rows, np.float64).reshape(len(rows), len(numbers))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not len(values):
        raise ValueError(f"{path}: no row with {wanted}; give the tables this importer was written for")
    return dict(zip(numbers, values.T, strict=True))
