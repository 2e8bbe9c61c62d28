"""The list of methods that `stepdistill methods` shows, read from their source, so that torch is not imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from stepdistill.distillers.config import Requirements
from stepdistill.distillers.registry import ENTRIES, options_of


def method_table() -> list[dict[str, Any]]:
    """One row per method.

    Returns:
        Rows of `name` (in recipes), `class`, `paper`, `family`, `requires` (list of words), `status`, `summary` (the first line of
        the class's docstring), `steps` (default number) and `passes` (network passes per sample and iteration at the default options).
    """
    return [_row(name, entry.method) for name, entry in ENTRIES.items()]


def _row(name: str, place: str) -> dict[str, Any]:
    family, module, class_name = place.split(".")
    definition = class_definition(Path(__file__).parent / family / f"{module}.py", class_name)
    constants = class_constants(definition)
    return {
        "name": name,
        "class": class_name,
        "paper": constants["paper"],
        "family": family,
        "requires": constants.get("requires", Requirements()).names(),
        "status": constants.get("status", "untested"),
        "summary": (ast.get_docstring(definition) or "").split("\n")[0].rstrip("."),
        "steps": options_of(name).model_fields["num_steps"].default,
        "passes": constants["passes"],
    }


def class_definition(file: Path, name: str) -> ast.ClassDef:
    """The definition of a class in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def class_constants(definition: ast.ClassDef) -> dict[str, Any]:
    """Class attributes that are literals, and `requires`."""
    constants: dict[str, Any] = {}
    for node in definition.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Requirements":
            keywords = {word.arg or "": ast.literal_eval(word.value) for word in node.value.keywords}
            constants[node.targets[0].id] = Requirements(**keywords)
        elif isinstance(node.value, ast.Constant):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    return constants
