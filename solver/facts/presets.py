"""Facts that ship with the house: a flag that names a file also takes the stem of a file under `configs/`."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"


def find(kind: str, given: str) -> Path:
    """The file or directory that `given` names, or else the preset of that kind.

    Args:
      kind: a folder of `configs/`: "models", "clusters", "workloads" or "profiles".
      given: a path, or the stem of a preset.

    Raises:
      ValueError: one line naming the flag (a kind has its name) and the presets there are.
    """
    path = Path(given)
    if path.exists():
        return path
    found = sorted((CONFIGS / kind).glob("*.json")) + sorted((CONFIGS / kind).glob("*.json.gz"))
    presets = {preset.name.removesuffix(".gz").removesuffix(".json"): preset for preset in found}
    if given not in presets:
        listed = ", ".join(presets) or "none"
        raise ValueError(f"{kind.removesuffix('s')}: {given}: no such file, and no preset of {kind}; presets: {listed}")
    return presets[given]
