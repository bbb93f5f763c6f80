"""BUILD files say exactly what the imports say."""

from __future__ import annotations

import pathlib

from tests.tools import make_build_files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_build_files_equal_imports() -> None:
    wanted = make_build_files.build_files(ROOT)
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    kept = {path for package in make_build_files.PACKAGES for path in (ROOT / package).rglob("BUILD")}
    names = sorted(str(path.relative_to(ROOT)) for path in {*stale, *(kept - set(wanted))})
    assert not names, f"run `python tests/tools/make_build_files.py`; BUILD and imports differ: {', '.join(names)}"


def test_a_forgotten_dependency_is_seen(tmp_path: pathlib.Path) -> None:
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver" / "a.py").write_text("X = 1\n")
    (tmp_path / "solver" / "b.py").write_text("def f():\n    from solver import a\n    return a.X\n")
    text = make_build_files.build_files(tmp_path)[tmp_path / "solver" / "BUILD"]
    assert 'name = "b",\n    srcs = ["b.py"],\n    deps = [":a"],' in text
