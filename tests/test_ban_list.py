"""What no module of the three packages may do: run data as code, or import upwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("solver", "exegpt_jax", "serving")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Data that becomes objects or code, in whichever library.
UNPICKLERS = {
    *(
        "pickle",
        "cPickle",
        "_pickle",
        "dill",
        "cloudpickle",
        "marshal",
        "shelve",
        "joblib",
        "jsonpickle",
        "pickletools",
    ),
    *("jax.experimental.serialize_executable", "multiprocessing.managers", "xmlrpc"),
}
RUNNERS_OF_CODE = {"code", "codeop", "runpy", "imp"}
# What a file says is never fetched from elsewhere.
FETCHERS = {
    *("urllib.request", "urllib3", "http.client", "requests", "httpx", "aiohttp", "ftplib", "fsspec", "gcsfs", "s3fs"),
    *("boto3", "webbrowser"),
}
BANNED_MODULES = UNPICKLERS | RUNNERS_OF_CODE | FETCHERS
BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("torch.load", "pandas.read_pickle", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    # Templates render in the sandbox.
    *("jinja2.Environment", "jinja2.Template", "jinja2.environment.Environment", "jinja2.sandbox.SandboxedEnvironment"),
}
# Methods that fetch, or run what they fetched, of whatever object.
BANNED_METHODS = {"from_pretrained", "snapshot_download", "hf_hub_download"}
# Modules whose names are looked up in a table of this project.
IMPORT_BY_NAME = {"serving/cli.py"}
REFERENCES = {"torch", "transformers", "ctranslate2", "huggingface_hub"}
COMPUTE = {"jax", "jaxlib", "flax", "orbax", "tensorstore", "optax"}
WIRE = {"grpc", "grpc_health", "grpc_reflection", "google.protobuf"}
FORBIDDEN_IMPORTS = {
    "solver": COMPUTE | WIRE | REFERENCES | {"exegpt_jax", "serving"},
    "exegpt_jax": WIRE | REFERENCES | {"serving", "ortools"},
    "serving": REFERENCES | {"ortools"},
}


def imported_modules(tree: ast.AST) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by absolute name"
            modules.add(str(node.module))
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def stands_in(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def aliases(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports stand for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname is not None}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def called(node: ast.Call, known: dict[str, str]) -> str:
    """The full name of what is called."""
    first, dot, rest = ast.unparse(node.func).partition(".")
    return known.get(first, first) + dot + rest


def banned_calls(tree: ast.AST, file: str = "") -> list[str]:
    found = []
    known = aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node, known)
        if name in BANNED_CALLS or name.rpartition(".")[2] in BANNED_METHODS:
            found.append(f"line {node.lineno}: {name}")
        literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
        if name == "importlib.import_module" and not literal and file not in IMPORT_BY_NAME:
            found.append(f"line {node.lineno}: {name} of a name that is no literal")
        for keyword in node.keywords:
            truthy = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and truthy:
                found.append(f"line {node.lineno}: {name}({keyword.arg}=...)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_runs_no_data_as_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not banned_calls(tree, str(path.relative_to(ROOT)))
    assert not {module for module in imported_modules(tree) if stands_in(module, BANNED_MODULES)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    forbidden = set(FORBIDDEN_IMPORTS[path.relative_to(ROOT).parts[0]])
    if path.is_relative_to(ROOT / "solver") and not path.is_relative_to(ROOT / "solver" / "search"):
        forbidden.add("ortools")
    upward = {module for module in imported_modules(ast.parse(path.read_text())) if stands_in(module, forbidden)}
    assert not upward


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "np.load(f, allow_pickle=flag)",
        "torch.load(f)",
        "os.system('ls')",
        "from os import system as run; run('ls')",
        "import torch as t; t.load(f)",
        "import yaml; yaml.load(f)",
        "from jinja2 import Template; Template(text)",
        "Tokenizer.from_pretrained('x')",
        "import builtins; builtins.exec(x)",
        "from importlib import import_module; import_module(name)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert banned_calls(ast.parse(source))


@pytest.mark.parametrize("source", ["import urllib.request", "from urllib import request", "import dill as d"])
def test_the_search_finds_modules(source: str) -> None:
    assert {name for name in imported_modules(ast.parse(source)) if stands_in(name, BANNED_MODULES)}


def test_the_search_does_not_cry_wolf() -> None:
    assert not banned_calls(ast.parse("re.compile('a'); jax.eval_shape(f); subprocess.run(['ls'], shell=False)"))
    assert not banned_calls(ast.parse("importlib.import_module('serving'); yaml.safe_load(f); model.eval_batch()"))
