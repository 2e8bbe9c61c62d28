"""Scorers in another environment: a command reads a manifest of pictures and writes their scores.

Written for HPSv3, whose package pins an older transformers; works for any program. The command runs once for a whole set,
as `COMMAND... MANIFEST SCORES`. Both files are JSON lines:

    {"index": 0, "image": "pictures/00000.png", "prompt": "a cat"}      the manifest, written here
    {"index": 0, "score": 7.25}                                         the scores in any order, written by the command
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.metrics.preprocess import ImagesOrPictures, as_pictures
from stepdistill.metrics.scorers.base import check_lengths


class CommandScorer:
    """A scorer that runs a user's command. It can rank, but has no gradient.

    Args:
        command: the program and its arguments, as a list or as a shell would split it.
        name: label of the numbers.
    """

    def __init__(self, command: str | Sequence[str], *, name: str) -> None:
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        if not self.command:
            raise UserError(f"the scorer '{name}' has an empty command")
        self.name = name

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "command": self.command}

    def __call__(self, images: ImagesOrPictures, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of images in [0, 1] or pictures, written to temporary PNG files."""
        check_lengths(images, prompts)
        with tempfile.TemporaryDirectory(prefix="stepdistill-scorer-") as folder:
            files = [Path(folder) / f"{number:05d}.png" for number in range(len(images))]
            for file, picture in zip(files, as_pictures(images), strict=True):
                picture.save(file)
            return self.score_files(files, prompts)

    def score_files(self, files: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) of picture files, from one call of the command.

        Raises:
            UserError: the command cannot be run, fails, or does not write one finite score per picture.
        """
        check_lengths(files, prompts)
        with tempfile.TemporaryDirectory(prefix="stepdistill-scorer-") as folder:
            manifest, scores = Path(folder) / "manifest.jsonl", Path(folder) / "scores.jsonl"
            rows = [
                {"index": index, "image": str(Path(file).absolute()), "prompt": prompt}
                for index, (file, prompt) in enumerate(zip(files, prompts, strict=True))
            ]
            manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            self._run(manifest, scores)
            return self._read(scores, len(files))

    def _run(self, manifest: Path, scores: Path) -> None:
        try:
            done = subprocess.run(
                [*self.command, str(manifest), str(scores)], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise UserError(f"the scorer '{self.name}' cannot be run: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise UserError(f"the scorer '{self.name}' failed with exit code {done.returncode}: {last}")

    def _read(self, file: Path, count: int) -> Tensor:
        if not file.is_file():
            raise UserError(
                f"the scorer '{self.name}' wrote no scores: it must write the file named by its last argument"
            )
        found: dict[int, float] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                found[int(row["index"])] = float(row["score"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"the scorer '{self.name}' wrote no score in line {number}: expected "
                    '{"index": 0, "score": 1.5}, not ' + line[:80]
                ) from error
        if found.keys() != set(range(count)):
            raise UserError(f"the scorer '{self.name}' wrote scores of {len(found)} pictures, not of all {count}")
        if not all(map(math.isfinite, found.values())):
            raise UserError(f"the scorer '{self.name}' wrote a score that is not finite")
        return torch.tensor([found[index] for index in range(count)], dtype=torch.float32)
