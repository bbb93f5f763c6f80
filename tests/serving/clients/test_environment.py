"""The foreign clients' environment holds what its list pins, and nothing of this project."""

from __future__ import annotations

import re

from tests.serving.clients import foreign


def test_it_holds_what_the_list_pins() -> None:
    text = (foreign.ROOT / "requirements" / "clients.txt").read_text()
    pins = re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)$", text, re.MULTILINE)
    found = foreign.run("installed.py")
    packages = {name: version for name, version in found["packages"].items() if name not in ("pip", "setuptools")}
    assert {name.lower().replace("_", "-"): version for name, version in pins} == packages
    assert found["ours"] == []
