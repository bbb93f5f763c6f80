"""--vllm_engine without its extra, and what a model directory tells a gateway; foreign clients test the door itself."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from serving.doors.vllm_engine.card import read_card, tokenizer_bundle
from tests.serving.servers import environment, exegpt


def test_without_the_extra_it_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    """Whether or not the extra is installed here: a package of that name that cannot be imported stands before it."""
    (tmp_path / "smg_grpc_proto.py").write_text("raise ImportError('not installed')")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    done = subprocess.run(
        exegpt("serve", f"--model={tiny_model}", "--engine=fake", "--address=127.0.0.1:0", "--vllm_engine"),
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "exegpt: vllm_engine: needs the package smg-grpc-proto (the extra smg), which is not installed; pip install it"
    ]


def test_a_card_says_what_config_json_says(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bos_token_id": 3, "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = read_card(tmp_path)
    assert (card.directory, card.name) == (tmp_path, tmp_path.name)
    assert (card.model_type, card.architectures) == ("llama", ("LlamaForCausalLM",))
    assert (card.bos_id, card.pad_id) == (3, 0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: is no JSON"):
        read_card(tmp_path)


def test_a_bundle_holds_text_files_alone_and_is_always_the_same(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "notes.txt").write_text("the operator's")
    data = tokenizer_bundle(tmp_path)
    assert data == tokenizer_bundle(tiny_model)
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert names == ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError):
        tokenizer_bundle(tmp_path)
