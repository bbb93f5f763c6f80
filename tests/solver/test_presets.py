"""Presets: a path wins over a stem, packed files count, unknown stems list what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from solver.facts import presets


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "configs" / "profiles"
    folder.mkdir(parents=True)
    for name in ("opt-13b.a100-80g.json.gz", "plain.json", "README.md"):
        (folder / name).touch()
    monkeypatch.setattr(presets, "CONFIGS", folder.parent)
    return folder


def test_stems_with_dots_and_packed_files(configs: Path) -> None:
    assert presets.find("profiles", "opt-13b.a100-80g") == configs / "opt-13b.a100-80g.json.gz"
    assert presets.find("profiles", "plain") == configs / "plain.json"


def test_a_path_wins(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(configs.parent)
    Path("plain").touch()
    assert presets.find("profiles", "plain") == Path("plain")


def test_unknown_stems_list_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"^profile: other: no such file, and no preset of profiles; presets: plain, opt-13b.a100-80g$"
    ):
        presets.find("profiles", "other")
    with pytest.raises(ValueError, match=r"no preset of workloads; presets: none$"):
        presets.find("workloads", "other")
