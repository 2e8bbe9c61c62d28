"""A built wheel carries the embedded assets and recipes, and finds them where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_finds_its_assets(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import stepdistill; from stepdistill.assets import asset_path, resolve_path;"
        "print(stepdistill.__file__); print(asset_path('emoji-sd/model_index.json'));"
        "print(resolve_path('recipes/emoji_dmd2_demo.yaml')); print(asset_path('emoji/glyphs.parquet'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.split()
    assert len(lines) == 4
    assert all(line.startswith(str(tmp_path / "site")) and Path(line).is_file() for line in lines)
