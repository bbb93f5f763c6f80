"""Entry of every Bazel test target: runs pytest on the file that its arguments name."""

from __future__ import annotations

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-c", "pyproject.toml", "--rootdir=.", *sys.argv[1:]]))
