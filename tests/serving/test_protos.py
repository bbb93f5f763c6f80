"""The checked-in code of the protocols is what the compiler makes of them today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from exegpt_jax.text.parameters import PARAMETERS
from serving.proto import generate
from serving.proto.exegpt.v1 import generation_pb2


def test_generated_code_is_current(tmp_path: Path) -> None:
    # Looked for, not imported: beside OR-Tools it would abort the process.
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("the proto compiler is a development dependency")
    for file in generate.generate(tmp_path):
        assert (tmp_path / file).read_text() == (generate.ROOT / file).read_text(), (
            "run python -m serving.proto.generate"
        )


def test_the_wire_carries_every_parameter_under_its_name() -> None:
    assert {field.name for field in generation_pb2.Parameters.DESCRIPTOR.fields} == {*PARAMETERS, "priority"}


def test_every_enum_begins_with_unspecified() -> None:
    for enum in generation_pb2.DESCRIPTOR.enum_types_by_name.values():
        assert enum.values[0].name.endswith("_UNSPECIFIED")
