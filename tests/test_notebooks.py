"""The notebooks run from top to bottom, hold a cell for every method, and show on the page what a run gave."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

from stepdistill.distillers import METHODS

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NAMES = ("methods_in_2d", "distil_your_own_pipeline")
SMALL = {"ITERATIONS": 100, "BATCH": 128, "FIT_STEPS": 600, "DOTS": 500}


def execute(name: str, folder: Path, **settings: object) -> Any:
    """A run of the notebook in an empty folder, by the very code that made its outputs."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.executed(FOLDER / f"{name}.ipynb", folder=folder, settings=settings)


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: Any) -> str:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook: Any) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def distances(notebook: Any) -> dict[str, tuple[float, float]]:
    found = re.findall(r"^(\w+): energy distance ([\d.]+) -> ([\d.]+)$", printed(notebook), re.MULTILINE)
    return {name: (float(before), float(after)) for name, before, after in found}


def test_every_method_has_its_section() -> None:
    """A heading with its recipe name, its file and its paper; then a cell that trains it."""
    cells = read("methods_in_2d").cells
    for name, method in METHODS.items():
        if method.status == "untested":
            continue
        (place,) = [i for i, cell in enumerate(cells) if f"(`{name}`)" in cell.source]
        text, code = cells[place].source, cells[place + 1].source
        assert Path(inspect.getfile(method)).relative_to(ROOT).as_posix() in text, name
        assert method.paper in text, name
        assert f"sd.{method.__name__}(" in code, name
        assert f'watch("{name}", ' in code, name


@pytest.mark.slow
def test_every_method_moves_the_mixture(tmp_path: Path) -> None:
    """Small settings suffice for all of them: 100 iterations each."""
    notebook = execute("methods_in_2d", tmp_path, **SMALL)
    found = distances(notebook)
    assert set(found) == set(METHODS)
    worse = {name: (before, after) for name, (before, after) in found.items() if not after < 0.85 * before}
    assert worse == {}
    assert pictures(notebook) == len(METHODS) + 2


@pytest.mark.slow
def test_your_own_pipeline_is_distilled_and_reloaded(tmp_path: Path) -> None:
    model = str(ROOT / "assets" / "emoji-sd")
    sizes = {"ITERATIONS": 2, "BATCH": 2, "NUM_PROMPTS": 8, "TEACHER_STEPS": 2}
    notebook = execute("distil_your_own_pipeline", tmp_path, MODEL=model, **sizes)
    text = printed(notebook)
    difference = re.search(r"trainer's own pipeline: (\S+)", text)
    assert difference is not None
    assert float(difference.group(1)) < 1e-3
    assert set(re.findall(r"^(diffusers|kohya): difference", text, re.MULTILINE)) == {"diffusers", "kohya"}
    assert pictures(notebook) == 4
    assert (tmp_path / "runs/your_own_pipeline/export/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_a_whole_run_and_nothing_of_its_machine(name: str) -> None:
    notebook = read(name)
    assert [cell.execution_count for cell in code_cells(notebook)] == [i + 1 for i in range(len(code_cells(notebook)))]
    assert pictures(notebook) >= 4
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < 1_500_000
    folders = [re.escape(f"{folder}{os.sep}") for folder in (Path.home(), tempfile.gettempdir(), sys.prefix)]
    assert not re.search("|".join(["site-packages", "Traceback", *folders]), text)


def test_what_the_page_shows_is_learnt() -> None:
    """With full settings every method ends well below where it starts."""
    found = distances(read("methods_in_2d"))
    assert set(found) == set(METHODS)
    assert {name: pair for name, pair in found.items() if not pair[1] < 0.3 * pair[0]} == {}


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = "\n".join(cell.source for cell in read(name).cells)
    files = re.findall(r"(?:stepdistill|recipes|assets)/[\w./-]+\.(?:py|yaml|md)", text)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
