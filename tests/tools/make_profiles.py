"""Makes the profiles that ship, from published tables.

    python -m tests.tools.make_profiles --tables=../shared/data

Every model preset on every device kind whose tables speak for it, in bfloat16. Equal tables give equal bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from solver.facts.model_config import read_model_spec
from solver.facts.presets import CONFIGS
from solver.facts.profile_file import shipped_name, write_profile
from solver.importers.compose import compose
from solver.importers.devices import DEVICES
from solver.importers.tables import TABLES

DTYPE = "bfloat16"
# The one model whose tables some devices have.
SINGLE = "llama-3-8b"


def make(tables: Path, folder: Path) -> None:
    """Writes one file per model preset and device kind."""
    for config in sorted((CONFIGS / "models").glob("*.json")):
        spec = read_model_spec(config)
        for kind, device in DEVICES.items():
            if device.single and config.stem != SINGLE:
                continue
            profile = compose(spec, kind, DTYPE, config.stem, tables)
            write_profile(profile, folder / shipped_name(config.stem, profile.shape, kind, DTYPE))
            print(f"{config.stem} on {kind}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, default=TABLES)
    parser.add_argument("--output", type=Path, default=CONFIGS / "profiles")
    arguments = parser.parse_args()
    make(arguments.tables, arguments.output)
