"""Grids of scored folders: every model from the same noise, several seeds of one prompt, best and worst by a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.columns import column_file
from stepdistill.evaluation.document import RunResults
from stepdistill.evaluation.pages.pictures import grid
from stepdistill.evaluation.picture_store import MANIFEST, PictureRecord, PictureStore, read_manifest

MOST_SEEDS = 8


@dataclass(frozen=True)
class ScoredRun:
    """A scored folder and its numbers."""

    folder: Path
    results: RunResults

    @classmethod
    def open(cls, path: str | Path) -> ScoredRun:
        """Read a scored folder, given by itself or by its results.json.

        Raises:
            UserError: it is not a scored folder.
        """
        folder = Path(path).expanduser()
        folder = folder if folder.is_dir() else folder.parent
        return cls(folder, RunResults.read(folder))

    @property
    def name(self) -> str:
        """The model's name."""
        return self.results.model.name

    @cached_property
    def records(self) -> list[PictureRecord]:
        """The manifest; empty if it was deleted."""
        path = self.folder / MANIFEST
        return read_manifest(path) if path.is_file() else []

    def picture(self, record: PictureRecord) -> Image.Image | None:
        """A picture, or None if it was deleted."""
        if not (self.folder / record.file).is_file():
            return None
        return PictureStore(self.folder).open(record)

    def scores(self, metric: str) -> list[float] | None:
        """One score per picture in the manifest's order; None if the metric has none."""
        number = self.results.metrics.get(metric)
        path = self.folder / "scores" / column_file("" if number is None else number.variant)
        if number is None or not path.is_file():
            return None
        table = pq.read_table(path)
        name = metric if metric in table.column_names else "score"
        if name not in table.column_names or len(table) != len(self.records):
            return None
        return [float(value) for value in table[name].to_pylist()]


def comparable_runs(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs whose prompts and seeds equal those of the first with pictures: they start from the same noise."""
    with_pictures = [run for run in runs if run.records and run.picture(run.records[0]) is not None]
    if not with_pictures:
        return []
    wanted = _noises(with_pictures[0])
    return [run for run in with_pictures if _noises(run) == wanted]


def same_noise_grid(runs: Sequence[ScoredRun], count: int = 8) -> Image.Image | None:
    """A row per run, a column per prompt, each from the same noise; None if no run has pictures."""
    shown = comparable_runs(runs)
    if not shown:
        return None
    numbers = [i for i, record in enumerate(shown[0].records) if record.sample == 0][:count]
    return grid(
        _labelled([(run.name, _pictures(run, [run.records[i] for i in numbers])) for run in shown]),
        [shown[0].records[i].prompt for i in numbers],
    )


def seeds_grid(runs: Sequence[ScoredRun], prompt_index: int = 0) -> Image.Image | None:
    """A row per run with up to eight seeds of one prompt, which shows lost diversity; None if there is one seed per prompt."""
    rows = []
    for run in comparable_runs(runs):
        records = [record for record in run.records if record.prompt_index == prompt_index][:MOST_SEEDS]
        if len(records) > 1:
            rows.append((run.name, _pictures(run, records), records[0].prompt))
    if not rows:
        return None
    return grid(_labelled([(name, pictures) for name, pictures, _ in rows]), [rows[0][2]])


def extremes_grid(run: ScoredRun, metric: str, count: int = 8) -> Image.Image | None:
    """The best and worst pictures of a run by a score, with their prompts; None without scores of single pictures.

    Raises:
        UserError: the metric has no direction.
    """
    scores, number = run.scores(metric), run.results.metrics.get(metric)
    if scores is None or number is None or not comparable_runs([run]):
        return None
    if number.better == 0:
        raise UserError(f"'{metric}' has no direction, so no best and worst pictures")
    order = sorted(range(len(scores)), key=lambda i: -number.better * scores[i])
    count = min(count, len(order) // 2)
    sheets = [
        grid(
            {f"{label} by {number.title}": _pictures(run, [run.records[i] for i in places])},
            [f"{scores[i]:.4g}  {run.records[i].prompt}" for i in places],
        )
        for label, places in (("best", order[:count]), ("worst", order[::-1][:count]))
        if places
    ]
    return _stacked(sheets) if sheets else None


def _noises(run: ScoredRun) -> list[tuple[str, int | None]]:
    return [(record.prompt, record.seed) for record in run.records]


def _labelled(rows: Sequence[tuple[str, list[Image.Image]]]) -> dict[str, list[Image.Image]]:
    """Rows by name; equal names are numbered."""
    found: dict[str, list[Image.Image]] = {}
    for name, pictures in rows:
        found[name if name not in found else f"{name} ({len(found) + 1})"] = pictures
    return found


def _pictures(run: ScoredRun, records: Sequence[PictureRecord]) -> list[Image.Image]:
    found = [run.picture(record) for record in records]
    return [picture for picture in found if picture is not None]


def _stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new(
        "RGB", (max(each.width for each in sheets), sum(each.height for each in sheets)), (255, 255, 255)
    )
    top = 0
    for each in sheets:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet
