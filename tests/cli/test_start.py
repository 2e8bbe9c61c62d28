"""What a user types first answers at once: no framework is imported for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stepdistill.distillers.registry import ENTRIES

CODE = """
import sys
from stepdistill.cli.main import main
sys.argv = ["stepdistill", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = [name for name in ("torch", "diffusers", "transformers", "numpy") if name in sys.modules]
assert not heavy, heavy
"""


def output_of(*arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "80", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "distill"),
        (["evaluate", "--help"], "--pipeline"),
        (["--version"], "stepdistill 0."),
        (["plan", "recipes/emoji_dmd2_demo.yaml"], "fake score"),
        (["plan", "recipes/emoji_sd3_lcm_4step.yaml", "--json"], '"total_gib"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_starts_without_torch(arguments: list[str], words: str) -> None:
    assert words in output_of(*arguments)


def test_the_list_of_methods_is_readable_at_80_columns() -> None:
    listed = output_of("methods")
    assert all(len(line) <= 80 for line in listed.splitlines())
    assert all(f"\n{name} " in listed for name in ENTRIES)
    assert not any(sign in listed for sign in "[]{}|")
