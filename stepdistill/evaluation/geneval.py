"""GenEval (https://arxiv.org/abs/2310.11513): write the folder its evaluator reads, and read its scores.

The evaluator needs a GPU and an old mmdet, so it runs in its own environment (https://github.com/djghosh13/geneval):

    python evaluation/evaluate_images.py FOLDER --outfile results.jsonl --model-path DETECTOR_FOLDER
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stepdistill.errors import UserError

NUM_SAMPLES = 4
"""Pictures per prompt, as published."""

Picture = Image.Image | str | Path
"""A picture or its file."""


@dataclass(frozen=True)
class GenEvalScores:
    """Scores in `results.jsonl`; fractions between 0 and 1."""

    overall: float
    """The published score: mean over tasks, not over pictures."""
    tasks: dict[str, float]
    """Fraction of correct pictures per task."""
    correct_images: float
    correct_prompts: float
    """Fraction of prompts with any correct picture."""
    num_images: int
    num_prompts: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_geneval_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Read `prompts/evaluation_metadata.jsonl` (553 lines as published), each with `tag`, `prompt` and `include`.

    Raises:
        UserError: the file is missing or has another format.
    """
    rows = _lines(Path(path))
    for number, row in enumerate(rows, 1):
        if not {"tag", "prompt", "include"} <= row.keys():
            raise UserError(f"{path}, line {number} is not a GenEval prompt: it needs tag, prompt and include")
    return rows


def write_geneval_folder(
    folder: str | Path, prompts: Sequence[Mapping[str, Any]], pictures: Iterable[Sequence[Picture]]
) -> int:
    """Write `NNNNN/metadata.jsonl` and `NNNNN/samples/0000.png`, ... for every prompt.

    Pictures are consumed prompt by prompt, so they can be generated lazily. Other formats are converted to PNG, the only one
    the evaluator reads.

    Args:
        folder: created if missing.
        prompts: from `read_geneval_prompts`.
        pictures: the pictures of each prompt, four as published.

    Returns:
        the number of pictures written.

    Raises:
        ValueError: the numbers of prompts and of sets of pictures differ.
        UserError: the folder has pictures of an earlier run, which the evaluator would count.
    """
    written: set[Path] = set()
    for number, (row, samples) in enumerate(zip(prompts, pictures, strict=True)):
        place = Path(folder) / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / "metadata.jsonl").write_text(json.dumps(dict(row)), encoding="utf-8")
        for sample, picture in enumerate(samples):
            file = place / "samples" / f"{sample:04d}.png"
            save_png(picture, file)
            written.add(file)
    left = set(Path(folder).glob("*/samples/*.png")) - written
    if left:
        raise UserError(f"{min(left)} is from an earlier run and would be counted; give an empty folder")
    return len(written)


def read_geneval_results(path: str | Path) -> GenEvalScores:
    """Read the evaluator's `results.jsonl`, one line per picture with `tag`, `correct` and `metadata`.

    Raises:
        UserError: the file is missing, empty, or has another format.
    """
    rows = _lines(Path(path))
    try:
        judged = [(str(row["tag"]), str(row["metadata"]), bool(row["correct"])) for row in rows]
    except KeyError as error:
        raise UserError(f"{path} is not a GenEval results file: a line lacks {error}") from error
    if not judged:
        raise UserError(f"{path} contains no results; run GenEval's evaluate_images.py to completion")
    tasks: dict[str, list[bool]] = {}
    prompts: dict[str, bool] = {}
    for task, prompt, is_right in judged:
        tasks.setdefault(task, []).append(is_right)
        prompts[prompt] = prompts.get(prompt, False) or is_right
    shares = {task: sum(right) / len(right) for task, right in tasks.items()}
    return GenEvalScores(
        overall=sum(shares.values()) / len(shares),
        tasks=shares,
        correct_images=sum(is_right for *_, is_right in judged) / len(judged),
        correct_prompts=sum(prompts.values()) / len(prompts),
        num_images=len(judged),
        num_prompts=len(prompts),
    )


def save_png(picture: Picture, file: Path) -> None:
    """Save a picture, or a copy of its file, as PNG."""
    if not isinstance(picture, Image.Image) and Path(picture).suffix.lower() == ".png":
        shutil.copyfile(picture, file)
        return
    opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
    opened.convert("RGB").save(file)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON lines file: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has lines that are not JSON objects")
    return rows
