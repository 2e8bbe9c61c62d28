"""Layers import downwards only, and methods stay free of frameworks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "stepdistill"
LAYERS = [
    {"typing", "errors", "assets"},
    {"schedule", "noise_schedule", "betas", "monotone_cubic", "prediction", "conditioning", "guidance", "sampler", "rng", "times", "solver", "transitions", "derivative", "trigflow", "losses"},
    {"denoisers"},
    {"rollout", "critics"},
    {"distillers", "testing"},
    {"data", "metrics", "export", "rewards"},
    {"training", "doctor"},
    {"bench"},
    {"cli", "cli_evaluate", "cli_options", "cli_report", "__main__"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return [
        path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"
    ]


def imported(path: Path) -> set[str]:
    """Modules imported at run time; those under TYPE_CHECKING are for the reader only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "stepdistill" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name}"


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


def test_every_public_name_can_be_imported() -> None:
    import stepdistill

    assert all(getattr(stepdistill, name) is not None for name in stepdistill.__all__)


LONG_FUNCTION, LONG_MODULE = 60, 300


def test_budgets_of_functions_and_modules() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= LONG_MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                assert node.end_lineno - node.lineno <= LONG_FUNCTION, f"{path}: {node.name}"
