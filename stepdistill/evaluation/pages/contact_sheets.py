"""Contact sheets of a benchmark: what the teacher and every student draw for the same captions on the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.embedded.measurements import Row
from stepdistill.evaluation.pages.pictures import grid
from stepdistill.evaluation.pages.tables import DrawnRows

NUM_COLUMNS = 10


@dataclass(frozen=True)
class Contestant:
    """A student: its name, its measured rows and the pictures of its run."""

    name: str
    rows: tuple[Row, ...]
    drawn: DrawnRows

    def distance(self, steps: int) -> float:
        """Frechet distance at so many steps; infinite where it was not measured."""
        found = (row.frechet_distance for row in self.rows if row.steps == steps)
        return next((distance for distance in found if distance is not None), float("inf"))


def contact_sheets(contestants: Sequence[Contestant]) -> dict[int, Image.Image]:
    """A sheet for each number of steps: the teacher at its most steps and at as many, then the students by distance.

    The teacher's pictures are those of the first run. A run of other captions has no line: its pictures do not compare.
    """
    if not contestants:
        return {}
    first = contestants[0].drawn
    comparable = [each for each in contestants if each.drawn.captions == first.captions]
    numbers = {row.steps for each in comparable for row in each.rows if row.steps is not None}
    sheets = {}
    for steps in sorted(numbers):
        words = steps_in_words(steps)
        full = next((name for name in first.rows if name.startswith("teacher")), None)
        rows = {name: first.rows[name] for name in (full, f"teacher {words}") if name in first.rows}
        for each in sorted(comparable, key=lambda student: student.distance(steps)):
            if f"student {words}" in each.drawn.rows:
                rows[each.name] = each.drawn.rows[f"student {words}"]
        cut = {name: pictures[:NUM_COLUMNS] for name, pictures in rows.items()}
        sheets[steps] = grid(cut, first.captions[:NUM_COLUMNS], tile=80)
    return sheets
