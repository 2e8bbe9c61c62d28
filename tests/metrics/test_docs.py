"""The page on metrics names what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from stepdistill import metrics
from stepdistill.metrics.networks.inception import VARIANTS
from stepdistill.metrics.networks.weights import VARIABLE

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_code_imports_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    imports = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    assert names
    assert all(getattr(metrics, name) is not None for name in names)


def test_every_variant_has_a_row() -> None:
    assert re.findall(r"^\| `inception/(\w+)`", PAGE, flags=re.MULTILINE) == list(VARIANTS)
    assert VARIABLE in PAGE


def test_every_exported_name_can_be_imported() -> None:
    assert all(getattr(metrics, name) is not None for name in metrics.__all__)
