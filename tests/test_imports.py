"""Imports point one way, without circles, and methods stay free of frameworks."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "stepdistill"
ORDER = """
typing errors assets < diffusion < denoisers < losses < critics < distillers < data export testing < metrics < evaluation
< training < pretraining bench doctor < cli < __main__
"""
LEVEL = {name: level for level, names in enumerate(ORDER.split("<")) for name in names.split()}
MODULES = {
    ".".join(("stepdistill", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def top(module: str) -> str:
    """The folder or file of the package that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imported(path: Path) -> set[str]:
    """Every module imported anywhere in a file, those of a `from package import module` among them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= submodules or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_the_order_names_every_folder() -> None:
    assert {top(module) for module in MODULES} - {""} == LEVEL.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if top(name)])
def test_imports_point_downwards(module: str) -> None:
    for name in imported(MODULES[module]) & MODULES.keys():
        if top(name):
            assert LEVEL[top(name)] <= LEVEL[top(module)], f"{module} imports {name}"


def test_no_import_circles() -> None:
    graph = {module: imported(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("folder", ["distillers", "losses"])
def test_methods_know_no_framework(folder: str) -> None:
    forbidden = {"diffusers", "accelerate", "transformers", "peft"}
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & forbidden, path


def test_importing_the_package_is_quick() -> None:
    """No framework is imported before it is used."""
    code = "import sys, stepdistill; print([m for m in ('torch', 'diffusers', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_every_public_name_can_be_imported() -> None:
    """One process for all packages: importing torch and diffusers is what takes the time."""
    code = (
        "from importlib import import_module\n"
        "packages = map(import_module, ('stepdistill', 'stepdistill.metrics', 'stepdistill.evaluation'))\n"
        "print([f'{p.__name__}.{n}' for p in packages for n in p.__all__ if getattr(p, n) is None])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LONG_FUNCTION, LONG_MODULE, MODULES_AT_THE_ROOT, LARGEST_SHARE = 60, 300, 8, 0.25


def test_budgets_of_functions_and_modules() -> None:
    for path in MODULES.values():
        text = path.read_text()
        assert text.count("\n") <= LONG_MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                assert node.end_lineno - node.lineno <= LONG_FUNCTION, f"{path}: {node.name}"


def test_budgets_of_folders() -> None:
    lines: dict[str, int] = {}
    for module, path in MODULES.items():
        lines[top(module)] = lines.get(top(module), 0) + path.read_text().count("\n")
    assert len(list(PACKAGE.glob("*.py"))) <= MODULES_AT_THE_ROOT
    assert max(lines.values()) <= LARGEST_SHARE * sum(lines.values()), lines
