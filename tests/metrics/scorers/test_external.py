"""Scorers behind a command: the two files of the protocol, and commands that break it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.metrics.scorers.external import CommandScorer

BRIGHTNESS = """
import json, sys
from PIL import Image
rows = [json.loads(line) for line in open(sys.argv[-2], encoding="utf-8")]
with open(sys.argv[-1], "w") as file:
    for row in reversed(rows):
        level = Image.open(row["image"]).convert("L").getpixel((0, 0))
        file.write(json.dumps({"index": row["index"], "score": level + len(row["prompt"]) / 10}) + "\\n")
"""


GREYS = torch.stack([torch.full((3, 4, 4), level / 255) for level in (10, 200, 30)])


def script(tmp_path: Path, code: str) -> list[str]:
    file = tmp_path / "a scorer.py"
    file.write_text(code)
    return [sys.executable, str(file)]


def test_scores_come_back_in_the_pictures_order(tmp_path: Path) -> None:
    scorer = CommandScorer(script(tmp_path, BRIGHTNESS), name="brightness")
    scores = scorer(GREYS, ["", "é", "ab"])
    assert torch.allclose(scores, torch.tensor([10.0, 200.1, 30.2]), atol=1e-4)
    assert scorer.description()["command"][-1].endswith("a scorer.py")


def test_files_are_scored_where_they_are(tmp_path: Path) -> None:
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for level, file in zip((7, 9), files, strict=True):
        Image.new("RGB", (3, 3), (level,) * 3).save(file)
    command = " ".join(f"'{part}'" for part in script(tmp_path, BRIGHTNESS))
    assert CommandScorer(command, name="x").score_files(files, ["", ""]).tolist() == [7.0, 9.0]
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        CommandScorer(command, name="x").score_files(files, [""])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "wrote no scores"),
        ("import sys; sys.exit('no GPU here')", "exit code 1: no GPU here"),
        ("import sys; open(sys.argv[-1], 'w').write('nonsense\\n')", "no score in line 1"),
        ("import sys; open(sys.argv[-1], 'w').write('{\"index\": 0}\\n')", "no score in line 1"),
        (
            "import sys; open(sys.argv[-1], 'w').write('{\"index\": 0, \"score\": 1}\\n')",
            "of 1 pictures, not of all 3",
        ),
        (BRIGHTNESS.replace("level +", "float('nan') +"), "not finite"),
    ],
)
def test_a_command_that_breaks_the_protocol_is_named(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(UserError, match=f"'mine'.*{message}"):
        CommandScorer(script(tmp_path, code), name="mine")(GREYS, ["", "", ""])


def test_a_command_that_is_not_there_or_empty() -> None:
    with pytest.raises(UserError, match="cannot be run"):
        CommandScorer("no-such-program --fast", name="x")(GREYS, ["", "", ""])
    with pytest.raises(UserError, match="empty command"):
        CommandScorer("", name="x")
