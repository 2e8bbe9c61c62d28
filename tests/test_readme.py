"""The README's Python example runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert isinstance(scope["image"], Image.Image)
    assert (tmp_path / "runs/example/export/stepdistill.json").is_file()


def test_commands_exist() -> None:
    from stepdistill.cli.main import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^stepdistill (\w+)", README, flags=re.MULTILINE)) <= known


def test_files_of_the_tour_exist() -> None:
    root = Path(__file__).parent.parent
    files = re.findall(r"`((?:stepdistill|recipes|assets)/[\w./-]+\.(?:py|yaml|md))`", README)
    assert [file for file in files if not (root / file).exists()] == []
