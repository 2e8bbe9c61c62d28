"""DPG-Bench (https://arxiv.org/abs/2403.05135): write the pictures its evaluator reads, and read its scores.

The evaluator uses a visual question answering model from modelscope, so it runs in its own environment
(https://github.com/TencentQQGYLab/ELLA):

    PIC_NUM=4 bash dpg_bench/dist_eval.sh FOLDER RESOLUTION
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.geneval import Picture

NUM_SAMPLES = 4
"""Pictures per prompt, in one 2 x 2 grid, as recommended."""

_TOTAL = "DPG-Bench score:"
_LEVELS = {"L1 category scores:": "categories", "L2 category scores:": "subcategories"}


@dataclass(frozen=True)
class DPGScores:
    """Scores in the results file, between 0 and 100."""

    overall: float
    """Mean over prompts of the share of questions answered yes; a question whose parent is answered no counts as no."""
    num_prompts: int
    prompts: dict[str, float]
    """The same for each prompt."""
    categories: dict[str, float] = field(default_factory=dict)
    """Level 1 (entity, attribute, relation, global, other), as the evaluator counts: the last picture of each grid, dependent
    questions included."""
    subcategories: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields except those of single prompts."""
        return {key: value for key, value in asdict(self).items() if key != "prompts"}


def read_dpg_prompts(folder: str | Path) -> dict[str, str]:
    """Read `dpg_bench/prompts/*.txt` (1,065 published) by file name, which names the picture too.

    Raises:
        UserError: the folder has none.
    """
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise UserError(f"no prompts of DPG-Bench in '{folder}': give ELLA's folder dpg_bench/prompts")
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in files}


def write_dpg_folder(
    folder: str | Path,
    prompts: Mapping[str, str] | Sequence[str],
    pictures: Iterable[Sequence[Picture]],
    *,
    resolution: int,
) -> int:
    """Write `NAME.png` for every prompt: its pictures in a 2 x 2 grid, row by row, or its single picture.

    The evaluator reads every file of the folder as a picture, so the folder must contain nothing else.

    Args:
        folder: created if missing; must be empty, or contain pictures of these prompts, which are overwritten.
        prompts: from `read_dpg_prompts`, or their names.
        pictures: the pictures of each prompt, four or one, squares of `resolution` pixels.
        resolution: side of a picture, as given to the evaluator.

    Returns:
        the number of files written.

    Raises:
        UserError: the folder contains other files.
        ValueError: a picture has another size, or a prompt has neither one nor four pictures.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    others = sorted({file.name for file in place.iterdir()} - {f"{name}.png" for name in prompts})
    if others:
        raise UserError(
            f"'{folder}' contains '{others[0]}'; DPG-Bench reads every file as a picture, so give an empty folder"
        )
    written = 0
    for name, samples in zip(prompts, pictures, strict=True):
        _grid(name, [_opened(sample) for sample in samples], resolution).save(place / f"{name}.png")
        written += 1
    return written


def read_dpg_results(path: str | Path) -> DPGScores:
    """Read the evaluator's `dpg-bench_..._results.txt`: a line per picture, then a summary.

    Raises:
        UserError: the file is missing, unfinished, or has another format.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    prompts: dict[str, float] = {}
    levels: dict[str, dict[str, float]] = {name: {} for name in _LEVELS.values()}
    overall, level, is_summary = None, None, False
    for line in lines:
        is_summary = is_summary or line.startswith("Model: ")
        if line.startswith(_TOTAL):
            overall = float(line.removeprefix(_TOTAL))
        elif line in _LEVELS:
            level = _LEVELS[line]
        elif line.startswith("\t") and level is not None:
            name, _, value = line.strip().rpartition(":")
            levels[level][name] = float(value)
        elif not is_summary and (scored := _of_picture(line)) is not None:
            prompts[scored[0]] = scored[1]
    if overall is None:
        raise UserError(f"{path} has no line '{_TOTAL}'; run DPG-Bench's evaluation to completion")
    return DPGScores(overall, len(prompts), prompts, **levels)


def _of_picture(line: str) -> tuple[str, float] | None:
    """Name and mean in a line `PATH, SCORE, ..., MEAN`."""
    path, _, mean = line.rpartition(", ")
    try:
        value = 100 * float(mean)
    except ValueError:
        return None
    while path and _is_number(path.rpartition(", ")[2]):
        path = path.rpartition(", ")[0]
    return (Path(path).name.split(".")[0], value) if path else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _opened(picture: Picture) -> Image.Image:
    return (picture if isinstance(picture, Image.Image) else Image.open(picture)).convert("RGB")


def _grid(name: str, pictures: Sequence[Image.Image], side: int) -> Image.Image:
    wrong = [picture.size for picture in pictures if picture.size != (side, side)]
    if wrong:
        raise ValueError(f"{name}: a picture of {wrong[0][0]} x {wrong[0][1]} pixels, not {side} x {side}")
    if len(pictures) == 1:
        return pictures[0]
    if len(pictures) != NUM_SAMPLES:
        raise ValueError(f"{name}: {len(pictures)} pictures; the grid takes {NUM_SAMPLES}, or one without a grid")
    grid = Image.new("RGB", (2 * side, 2 * side))
    for number, picture in enumerate(pictures):
        grid.paste(picture, (number % 2 * side, number // 2 * side))
    return grid
