"""What no module of the three packages may do: run data as code, or import upwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("solver", "exegpt_jax", "serving")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
BANNED_BUILTINS = {"eval", "exec", "compile", "__import__"}
BANNED_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}
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


def banned_calls(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in BANNED_BUILTINS or name in BANNED_CALLS:
            found.append(f"line {node.lineno}: {name}")
        for keyword in node.keywords:
            truthy = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and truthy:
                found.append(f"line {node.lineno}: {name}({keyword.arg}=...)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_runs_no_data_as_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not banned_calls(tree)
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
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert banned_calls(ast.parse(source))


def test_the_search_does_not_cry_wolf() -> None:
    assert not banned_calls(ast.parse("re.compile('a'); jax.eval_shape(f); subprocess.run(['ls'], shell=False)"))
