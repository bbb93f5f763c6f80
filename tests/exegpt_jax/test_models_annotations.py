"""The shapes in annotations are true: checked at every call by jaxtyping and beartype, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from jaxtyping import install_import_hook
with install_import_hook(["exegpt_jax.models", "exegpt_jax.sharding"], "beartype.beartype"):
    from tests.exegpt_jax.parity import compare, read_case
from pathlib import Path
for name in ("gpt2", "qwen3-window-mixed", "t5-v1.1"):
    assert compare(read_case(Path("tests/exegpt_jax/golden") / name), tensor=4, batched=True).matches
"""


def test_every_call_fits_its_annotations() -> None:
    # The environment of conftest.py (virtual devices) is inherited; the import hook must come before the modules.
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
