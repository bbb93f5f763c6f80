"""Writes the Bazel BUILD files from the imports: one native `py_library` a module, one `py_test` a test file.

    python tests/tools/make_build_files.py

Packages from outside (jax, grpc, ...) come from the Python environment that runs Bazel; only modules of this tree are
dependencies. A test is tagged `small` when nothing that it reaches imports jax, grpc or subprocess; CI lets Bazel run
those only. `tests/solver/test_build_files.py` fails when a BUILD file and the imports differ.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("solver", "exegpt_jax", "serving", "tests")
HEAVY = {"jax", "flax", "grpc", "grpc_tools", "orbax", "torch", "subprocess"}
RUNNER = "//tests:run_pytest.py"
# What a module imports by a name in a table, starts as a process, or reads as a file.
OPENED_BY_NAME = {
    "serving.cli": ("serving.commands.",),
    "serving.load.fleet": ("serving.load.worker",),
    "serving.proto.generate": ("serving.proto.exegpt.", "serving.proto.inference."),
}
HEAD = "# Made by tests/tools/make_build_files.py from the imports; change those, not this file.\n"


@dataclasses.dataclass(frozen=True)
class Module:
    """One Python file.

    Attributes:
      name: dotted name.
      file: path below the root.
      inside: modules of this tree that it imports, anywhere in the file.
      outside: top-level names of the other packages that it imports.
      text: its source.
    """

    name: str
    file: pathlib.PurePosixPath
    inside: frozenset[str]
    outside: frozenset[str]
    text: str

    @property
    def label(self) -> str:
        return f"//{self.file.parent}:{self.file.stem}"


def modules(root: pathlib.Path) -> dict[str, Module]:
    """Every Python file of the tree by its dotted name; a package's own file is `package.__init__`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if path.stem != "__init__" or path.read_text().strip():
                found[name] = path
    return {name: _module(root, name, path, set(found)) for name, path in found.items()}


def _module(root: pathlib.Path, name: str, path: pathlib.Path, known: set[str]) -> Module:
    text = path.read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: relative import in line {node.lineno}; write the whole name")
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside: set[str] = set()
    for each in imported:
        # `from package import name`: the name is a module, or else it stands in the package's own file.
        owner = each.rpartition(".")[0]
        inside |= {each} & known or {f"{each}.__init__", owner, f"{owner}.__init__"} & known
    if name in OPENED_BY_NAME:
        inside |= {each for each in known if each.startswith(OPENED_BY_NAME[name])}
    outside = {each.split(".")[0] for each in imported} - set(PACKAGES)
    file = pathlib.PurePosixPath(path.relative_to(root).as_posix())
    return Module(name, file, frozenset(inside - {name}), frozenset(outside), text)


def is_test(module: Module) -> bool:
    return module.file.parts[0] == "tests" and module.file.name.startswith("test_")


def is_small(module: Module, tree: dict[str, Module]) -> bool:
    """Whether nothing that the module reaches needs an accelerator library, a server or another process."""
    seen, todo = {module.name}, [module]
    while todo:
        current = todo.pop()
        if current.outside & HEAVY:
            return False
        for name in current.inside - seen:
            seen.add(name)
            todo.append(tree[name])
    return True


def rule(module: Module, tree: dict[str, Module]) -> str:
    """The module's target in Starlark."""
    here = f"//{module.file.parent}:"
    needs = {tree[name].label for name in module.inside}
    lines = [f'    name = "{module.file.stem}",']
    if is_test(module):
        needs.add("//tests:conftest")
        if "rglob(" in module.text:  # it reads the tree's own sources
            needs |= {other.label for other in tree.values() if other.file.parts[0] != "tests"}
        size = "small" if is_small(module, tree) else "large"
        data = ["//:pyproject.toml"]
        data += ["//configs"] if "configs" in module.text or "numbers_model" in module.text else []
        data += [":golden"] if (ROOT / module.file.parent / "golden").is_dir() else []
        lines += [f'    size = "{size}",', f'    srcs = ["{module.file.name}", "{RUNNER}"],', f'    main = "{RUNNER}",']
        lines += [f'    args = ["{module.file}"],', f"    data = {_list(data)},", f'    tags = ["{size}"],']
    else:
        lines += [f'    srcs = ["{module.file.name}"],']
        generated_from = [f"{module.file.stem.removesuffix('_pb2')}.proto", f"{module.file.stem}.pyi"]
        data = [name for name in generated_from if (ROOT / module.file.parent / name).is_file()]
        data += ["//configs"] if '"configs"' in module.text else []
        lines += [f"    data = {_list(data)},"] if data else []
    labels = sorted(label.replace(here, ":") if label.startswith(here) else label for label in needs)
    lines += [f"    deps = {_list(labels)},"] if labels else []
    return "\n".join([f"py_{'test' if is_test(module) else 'library'}(", *lines, ")"])


def _list(items: list[str]) -> str:
    if len(items) < 2:
        return str(items).replace("'", '"')
    return "[\n" + "".join(f'        "{item}",\n' for item in items) + "    ]"


def build_files(root: pathlib.Path = ROOT) -> dict[pathlib.Path, str]:
    """Text of every BUILD file by its path."""
    tree = modules(root)
    for module in tree.values():
        _refuse_cycle(module, tree)
    folders: dict[pathlib.PurePosixPath, list[Module]] = {}
    for module in tree.values():
        folders.setdefault(module.file.parent, []).append(module)
    files = {}
    for folder, members in sorted(folders.items()):
        blocks = [HEAD + '\npackage(default_visibility = ["//visibility:public"])']
        if str(folder) == "tests":
            blocks.append('exports_files(["run_pytest.py"])')
        if (root / folder / "golden").is_dir():
            blocks.append('filegroup(\n    name = "golden",\n    srcs = glob(["golden/**"]),\n)')
        blocks += [rule(module, tree) for module in sorted(members, key=lambda each: each.file.name)]
        files[root / folder / "BUILD"] = "\n\n".join(blocks) + "\n"
    return files


def _refuse_cycle(start: Module, tree: dict[str, Module]) -> None:
    """Bazel's graph has no cycles, and neither should the imports."""

    @functools.cache
    def reaches(name: str) -> frozenset[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            for each in tree[todo.pop()].inside - seen:
                seen.add(each)
                todo.append(each)
        return frozenset(seen)

    for name in start.inside:
        if start.name in reaches(name):
            raise ValueError(f"{start.file}: imports {name}, which imports it back")


def main() -> None:
    for path, text in build_files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
