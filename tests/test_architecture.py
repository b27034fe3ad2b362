"""Imports go one way, from entry points down to what knows nothing of the rest, and none is hidden in a function."""

import ast
from pathlib import Path

import pytest

from tests.conftest import PACKAGE

# From the ground up. A package imports from the rows below its own, and within itself; packages of one row do not
# know each other.
LAYERS = (
    ("errors", "phrases", "random_streams", "pages", "kernels"),
    ("models",),
    ("files",),
    ("data",),
    ("config",),
    ("distributed",),
    ("tasks",),
    ("training", "inference", "explaining", "measuring"),
    ("reporting", "api", "device_checks"),
    ("cli",),
    ("commands",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Optional packages, and MindSpore where a process must know its rank before: imported where they are needed.
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def package(module: str) -> str:
    """ "focal_twins.data.pipeline" belongs to data, "focal_twins.errors" to itself."""
    return module.split(".")[1]


def imports(path: Path) -> list[tuple[str, bool]]:
    """The modules of this project that a file imports, and whether it does so inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nested = {
        child
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("focal_twins."):
            found.append((node.module, node in nested))
            found += [
                (f"{node.module}.{name.name}", node in nested)
                for name in node.names
                if (PACKAGE.parent / node.module.replace(".", "/") / f"{name.name}.py").is_file()
            ]
        elif isinstance(node, ast.Import):
            found += [(name.name, node in nested) for name in node.names if name.name.startswith("focal_twins.")]
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down(path):
    own = package(module_name(path))
    for module, _ in imports(path):
        other = package(module)
        assert other == own or LEVEL[other] < LEVEL[own], f"{own} imports {module}, which is not below it"


def test_nothing_imports_in_a_circle():
    graph = {module_name(path): {module for module, _ in imports(path)} for path in MODULES}
    seen: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in seen:
            for other in sorted(graph.get(module, ())):
                visit(other, (*way, module))
            seen.add(module)

    for module in graph:
        visit(module, ())


OF_THE_COMMAND_LINE = ("cli", "commands")  # which must set MindSpore's environment before anything imports MindSpore


@pytest.mark.parametrize(
    "path", [path for path in MODULES if package(module_name(path)) not in OF_THE_COMMAND_LINE], ids=module_name
)
def test_no_import_is_hidden_in_a_function(path):
    assert [module for module, inside in imports(path) if inside] == []
