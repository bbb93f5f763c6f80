"""Makes the Python code of the protocols: `python -m serving.proto.generate`.

The generated files are checked in, so that a user needs no compiler; a test compares them with a fresh run. The protos
are compiled under this folder (their canonical names, such as `exegpt/v1/generation.proto`, show in reflection), while
the Python modules live in `serving.proto`, so their imports are rewritten.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent
PROTOS = (
    "exegpt/v1/generation.proto",
    "exegpt/v1/admin.proto",
    "exegpt/engine/v1/link.proto",
    "inference/inference.proto",
)
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
_OWN_IMPORT = re.compile(r"^from ((?:exegpt|inference)[.\w]*) import", re.MULTILINE)


def generate(into: Path) -> tuple[Path, ...]:
    """Writes the code of every proto below `into` and returns the files' paths relative to it."""
    # In a process of its own: its protobuf library and that of OR-Tools abort a process that loads both. Development
    # only: the compiler is no run-time dependency.
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", *outputs, *PROTOS]
    if subprocess.run(command, check=False).returncode != 0:
        raise ValueError(f"protos: {', '.join(PROTOS)} do not compile; see the lines above")
    files = tuple(Path(proto.removesuffix(".proto") + suffix) for proto in PROTOS for suffix in SUFFIXES)
    for file in files:
        text = (into / file).read_text(encoding="utf-8")
        (into / file).write_text(_OWN_IMPORT.sub(r"from serving.proto.\1 import", text), encoding="utf-8")
    return files


def main(arguments: Sequence[str]) -> int:
    into = Path(arguments[0]) if arguments else ROOT
    for file in generate(into):
        print(into / file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
