"""What a gateway wants to know of a model directory before it sends requests: names, special tokens, the tokenizer.

Nothing here needs the stubs of the protocol: they are looked for, and the directory is read, before the server starts.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import zipfile
from pathlib import Path

from exegpt_jax.text.model_files import read_object

# All that this engine itself reads about text, and what other readers of tokenizer.json look at beside it.
_BUNDLED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("config.json", "generation_config.json"),
)
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """A model directory as a gateway sees it.

    Attributes:
      directory: absolute; a gateway on the same machine reads the tokenizer there, another one asks for it.
      name: what clients call the model.
      model_type, architectures: of config.json, empty where it names none.
      bos_id, pad_id: of config.json, 0 where it names none, as the protocol has no other word for it.
    """

    directory: Path
    name: str
    model_type: str
    architectures: tuple[str, ...]
    bos_id: int
    pad_id: int


def check_installed() -> None:
    """Raises ValueError with one line where the stubs of the protocol, an optional extra, are not there."""
    try:
        importlib.import_module("smg_grpc_proto.generated.vllm_engine_pb2_grpc")
    except ImportError:
        raise ValueError(
            "vllm_engine: needs the package smg-grpc-proto (the extra smg), which is not installed; pip install it"
        ) from None


def read_card(directory: Path) -> ModelCard:
    """Raises ValueError with one line for a broken config.json."""
    config = read_object(directory / "config.json")
    found = config.get("architectures")
    return ModelCard(
        directory=directory.resolve(),
        name=directory.resolve().name,
        model_type=str(config.get("model_type") or ""),
        architectures=tuple(map(str, found)) if isinstance(found, list) else (),
        bos_id=_token_id(config.get("bos_token_id")),
        pad_id=_token_id(config.get("pad_token_id")),
    )


def tokenizer_bundle(directory: Path) -> bytes:
    """The text files of a model directory as a zip archive, byte for byte the same every time.

    Raises FileNotFoundError if it has no tokenizer.json."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        for name in _BUNDLED:
            path = directory / name
            if path.is_file() or name == "tokenizer.json":
                entry = zipfile.ZipInfo(name, _NO_DATE)
                bundle.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def _token_id(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0
