"""Run notebooks from top to bottom and keep what they show: `python notebooks/execute.py [notebook ...]`, default all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SETTINGS = "parameters"  # the tag that papermill, too, looks for


def executed(path: Path, *, folder: Path, settings: dict[str, Any] | None = None) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`, and nothing of the machine that ran it.

    Args:
        path: the notebook.
        folder: where its kernel runs; relative paths of the notebook lie here.
        settings: replace variables of the notebook's settings cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message shows it.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    if settings:
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        tagged = [i for i, cell in enumerate(notebook.cells) if SETTINGS in cell.metadata.get("tags", [])]
        notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, kernel_name="python3", resources=resources, **options).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress bars and warnings, which name paths of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:  # Pillow shows every picture twice
                output.get("data", {}).pop("image/jpeg", None)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(Path(name), folder=FOLDER), name)
