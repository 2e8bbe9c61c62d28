"""GenEval (https://arxiv.org/abs/2310.11513): the folder that its own evaluator reads, and the scores that it writes.

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
"""Pictures of each prompt, as published."""

Picture = Image.Image | str | Path
"""A picture, or the file of one."""


@dataclass(frozen=True)
class GenEvalScores:
    """What `results.jsonl` says. All shares are between 0 and 1."""

    overall: float
    """The published score: the mean over the tasks' shares, not over pictures."""
    tasks: dict[str, float]
    """Share of right pictures of each task."""
    correct_images: float
    correct_prompts: float
    """Share of prompts of which any picture is right."""
    num_images: int
    num_prompts: int

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def read_geneval_prompts(path: str | Path) -> list[dict[str, Any]]:
    """The lines of `prompts/evaluation_metadata.jsonl` (553 in the published one), each with `tag`, `prompt` and `include`.

    Raises:
        UserError: the file is missing or is another one.
    """
    rows = _lines(Path(path))
    for number, row in enumerate(rows, 1):
        if not {"tag", "prompt", "include"} <= row.keys():
            raise UserError(
                f"{path}, line {number} is no prompt of GenEval: it needs tag, prompt and include"
            )
    return rows


def write_geneval_folder(
    folder: str | Path, prompts: Sequence[Mapping[str, Any]], pictures: Iterable[Sequence[Picture]]
) -> int:
    """Write `NNNNN/metadata.jsonl` and `NNNNN/samples/0000.png`, ... for every prompt.

    Pictures are taken one prompt at a time, so they may be generated on the way; other formats than PNG are converted, since
    the evaluator reads no other.

    Args:
        folder: made if need be.
        prompts: of `read_geneval_prompts`.
        pictures: for each prompt in turn its pictures, four as published.

    Returns:
        how many pictures were written.

    Raises:
        ValueError: there are more or fewer prompts than sets of pictures.
        UserError: the folder holds pictures of an earlier run that were not overwritten; the evaluator would count them.
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
        raise UserError(f"{min(left)} is of an earlier run, and would be counted; give an empty folder")
    return len(written)


def read_geneval_results(path: str | Path) -> GenEvalScores:
    """Scores of the evaluator's `results.jsonl`, one picture per line with `tag`, `correct` and `metadata`.

    Raises:
        UserError: the file is missing, empty or another one.
    """
    rows = _lines(Path(path))
    try:
        judged = [(str(row["tag"]), str(row["metadata"]), bool(row["correct"])) for row in rows]
    except KeyError as error:
        raise UserError(f"{path} holds no results of GenEval: a line lacks {error}") from error
    if not judged:
        raise UserError(f"{path} holds no result; run GenEval's evaluate_images.py to its end")
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
    """A picture, or a copy of its file, as PNG."""
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
        raise UserError(f"{path} is no JSON lines file: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds lines that are no JSON objects")
    return rows
