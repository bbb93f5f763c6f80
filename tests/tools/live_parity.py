"""Parity with transformers on models that nobody has seen: new sizes, new weights, compared at once.

A Python that has torch and transformers (--reference) writes new random cases of every family into a temporary
directory; this one computes the same and compares, together and alone, on 1, 2, 4 and 8 virtual devices. Prints a
table; exit status 1 on any mismatch. Every request is compared over all its tokens: prompts at which the two best
scores of the reference tie are drawn again when the cases are made.

Usage: python tests/tools/live_parity.py [--reference=.venv-reference/bin/python] [--count=1] [--seed=N] [--family=t5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices on few cores need pool threads for every side of a collective.
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

from tests.exegpt_jax.parity import Difference, compare, read_case  # noqa: E402  (the devices come first)

DEGREES = (1, 2, 4, 8)


def make_cases(reference: str, directory: Path, count: int, seed: int, family: str) -> None:
    script = Path(__file__).with_name("make_golden.py")
    command = [reference, str(script), f"--output={directory}", f"--random={count}", f"--seed={seed}"]
    command.append(f"--family={family}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"live_parity: --reference={reference}: {error.strerror}; give a Python with torch and transformers")
    if done.returncode:
        sys.exit(f"live_parity: {' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    print("".join(line + "\n" for line in done.stdout.splitlines() if line.startswith("drawn again")), end="")


def compare_all(directory: Path) -> list[Difference]:
    """One line per case and way of running it."""
    differences = []
    print(
        f"{'case':<12} {'devices':>7} {'run':<8} {'logits':>9} {'requests':>8} {'wrong':>5} {'ties':>4} {'seconds':>7}"
    )
    for path in sorted(directory.iterdir()):
        case = read_case(path)
        for tensor in DEGREES:
            for batched in (True, False):
                begun_s = time.monotonic()
                found = compare(case, tensor, batched)
                differences.append(found)
                run, verdict = "batched" if batched else "alone", "" if found.matches else "  MISMATCH"
                counts = f"{found.logits:>9.1e} {found.rows:>8} {found.wrong:>5} {found.ties:>4}"
                seconds = time.monotonic() - begun_s
                print(f"{case.name:<12} {tensor:>7} {run:<8} {counts} {seconds:>7.1f}{verdict}", flush=True)
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare new random models with transformers.")
    default = str(ROOT / ".venv-reference" / "bin" / "python")
    parser.add_argument("--reference", default=default, help="a Python with torch and transformers")
    parser.add_argument("--count", type=int, default=1, help="new configurations per family")
    parser.add_argument(
        "--seed", type=int, default=None, help="default: the clock; printed, so that a run can be repeated"
    )
    parser.add_argument("--family", default="", help="only this one")
    options = parser.parse_args()
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as directory:
        make_cases(options.reference, Path(directory), options.count, seed, options.family)
        differences = compare_all(Path(directory))
    requests = sum(found.rows for found in differences)
    ties = sum(found.ties for found in differences)
    wrong = sum(not found.matches for found in differences)
    largest = max(found.logits for found in differences)
    print(f"{len(differences)} runs, {requests} requests: {wrong} mismatches, {ties} ties, logits within {largest:.1e}")
    return 1 if wrong or ties else 0


if __name__ == "__main__":
    sys.exit(main())
