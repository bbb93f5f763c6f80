"""`exegpt check` and `exegpt convert` as commands: exit status, one line of error, what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exegpt_jax.weights import checkpoint, manifest
from solver.facts import presets
from solver.facts.model_config import read_model_spec
from solver.plan.memory import format_bytes
from tests.exegpt_jax.tiny_models import CONFIGS, read_tensors, spec_of, write_model, write_tensors
from tests.serving.in_process import call, refusal

# check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_check_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    tensors = write_model(name, tmp_path, "bfloat16")
    status, out, _ = call(capsys, "check", str(tmp_path))
    assert status == 0
    assert f"supported: {spec_of(name).family}" in out
    assert f"{len(tensors)} tensors in safetensors, bfloat16; names and shapes agree" in out
    assert "tensor=8" in out


def test_check_counts_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model("llama", tmp_path)
    flags = ["--tensor=2", "--max_rows=4", "--cache_tokens=32", "--dtype=float32", "--encode_batch=2"]
    status, out, _ = call(capsys, "check", str(tmp_path), *flags)
    assert status == 0
    row = 2 * 3 * 32 * 1 * 4 * 4  # keys and values, layers, positions, one head of 4 floats
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in out.splitlines() if "│" in line}
    assert lines["cache, per row"] == format_bytes(row)
    assert lines["cache, all rows"] == format_bytes(4 * row)
    assert "tensor=1" not in out


@pytest.mark.parametrize("preset", sorted(path.stem for path in (presets.CONFIGS / "models").glob("*.json")))
def test_check_presets(capsys: pytest.CaptureFixture[str], preset: str) -> None:
    status, out, _ = call(capsys, "check", preset)
    assert status == 0
    assert "weights: none here" in out


def test_check_rows_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "check", "llama-3-8b", "--dtype=bfloat16", "--device_gib=24")
    assert status == 0
    assert "tensor=1: " in out
    assert "rows fit into" in out
    _, out, _ = call(capsys, "check", "llama-3-8b", "--dtype=bfloat16", "--device_gib=8")
    assert "tensor=1: does not fit" in out
    assert "--memory_fraction" in out


def test_check_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = write_model("llama", tmp_path)
    assert "presets" in refusal(capsys, "check", str(tmp_path / "absent"))
    assert "name one" in refusal(capsys, "check")
    assert "tensor" in refusal(capsys, "check", str(tmp_path), "--tensor=3")
    assert "cache_tokens" in refusal(capsys, "check", str(tmp_path), "--cache_tokens=100000")
    write_tensors(tmp_path / checkpoint.SINGLE, {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    assert "1 missing: lm_head.weight" in refusal(capsys, "check", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert "model_type" in refusal(capsys, "check", str(tmp_path))


def test_check_needs_neither_jax_nor_grpc(tmp_path: Path) -> None:
    write_model("qwen3", tmp_path)
    program = (
        "import sys; from serving import cli; status = cli.main(['check', sys.argv[1]]); "
        "loaded = {'jax', 'flax', 'orbax', 'grpc', 'torch'} & set(sys.modules); sys.exit(status or str(loaded))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert result.stderr.strip() == "set()"
    assert "supported: qwen3" in result.stdout


# convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Bit for bit, through another degree on the way, with every setting kept."""
    tensors = write_model(name, tmp_path / "model", "bfloat16")
    one, two, back = (str(tmp_path / part) for part in ("one", "two", "back"))
    assert call(capsys, "convert", f"--model={tmp_path / 'model'}", f"--output={one}", "--tensor=4")[0] == 0
    status, out, _ = call(capsys, "check", one)
    assert status == 0
    assert "converted checkpoint" in out
    assert "tensor=4" in out
    assert call(capsys, "convert", f"--model={one}", f"--output={two}", "--tensor=2")[0] == 0
    assert call(capsys, "convert", f"--model={two}", f"--output={back}", "--format=safetensors")[0] == 0
    found = read_tensors(Path(back))
    assert found.keys() == tensors.keys()
    assert all(found[key].tobytes() == tensor.tobytes() for key, tensor in tensors.items())
    for file in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (Path(back) / file).read_bytes() == (tmp_path / "model" / file).read_bytes()


def test_convert_dtype_is_named_in_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model("llama", tmp_path / "model", "float32")
    model, output = f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'half'}"
    status, out, _ = call(capsys, "convert", model, output, "--format=safetensors", "--dtype=bfloat16")
    assert status == 0
    assert "bfloat16" in out
    assert read_model_spec(tmp_path / "half").dtype == "bfloat16"
    assert {tensor.dtype.name for tensor in read_tensors(tmp_path / "half").values()} == {"bfloat16"}


def test_convert_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model("llama", tmp_path / "model")
    model, output = f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}"
    assert "model" in refusal(capsys, "convert", output)
    assert "output: not given" in refusal(capsys, "convert", model)
    assert "exists" in refusal(capsys, "convert", model, f"--output={tmp_path / 'model'}")
    assert "tensor: 3" in refusal(capsys, "convert", model, output, "--tensor=3")
    assert "no meaning" in refusal(capsys, "convert", model, output, "--format=safetensors", "--tensor=2")
    assert call(capsys, "convert", model, output)[0] == 0
    array = max((tmp_path / "out" / manifest.STATE).rglob("*"), key=lambda path: path.stat().st_size)
    array.write_bytes(array.read_bytes()[:-1])
    again = refusal(capsys, "convert", f"--model={tmp_path / 'out'}", f"--output={tmp_path / 'again'}")
    assert "truncated" in again
    assert not (tmp_path / "again").exists()
