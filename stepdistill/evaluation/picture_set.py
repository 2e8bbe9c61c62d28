"""A set of pictures in a folder: drawn or adopted, and turned into columns by all processes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from stepdistill.evaluation.columns import Columns, ColumnTable, Extractor
from stepdistill.evaluation.drawing import Assignment, Painter, Progress, adopt, check_prompts, draw
from stepdistill.evaluation.picture_store import PictureRecord, PictureStore
from stepdistill.evaluation.processes import ProcessGroup


@dataclass(frozen=True)
class PictureSet:
    """The pictures of an assignment, or those of a folder.

    Attributes:
        store: the manifest, and the pictures if they are drawn.
        assignment: which pictures; None for existing pictures without prompts.
        painter: draws them; None if they exist in `adopted`.
        adopted: folder of existing pictures.
        keeps_all: whether a scored picture that was deleted is drawn again.
    """

    store: PictureStore
    assignment: Assignment | None
    painter: Painter | None
    adopted: Path | None
    batch_size: int
    group: ProcessGroup
    progress: Progress | None = None
    keeps_all: bool = True

    def records(self) -> list[PictureRecord]:
        """The manifest's records of these pictures; a folder may contain more."""
        records = list(self.store.records().values())
        return records if self.assignment is None else records[: len(self.assignment)]

    def fill(self) -> None:
        """Draw or adopt until the manifest is complete.

        Raises:
            UserError: the folder has pictures of other prompts.
        """
        if self.painter is None:
            if self.group.is_main:
                adopt(self.adopted or self.store.folder, self.store, self.assignment)
            self.group.barrier()
        elif self.assignment is not None:
            found = self.store.records()
            known = [found[index] for index in range(len(self.assignment)) if index in found]
            check_prompts(known, self.assignment, self.store.folder)
            present = {each.index for each in known if not self.keeps_all or self.store.has_picture(each)}
            self._draw(set(range(len(self.assignment))) - present)

    def columns(self, extractor: Extractor, *, elsewhere: Path | None = None) -> Columns:
        """Columns of these pictures: computed by all processes, merged by the main one."""
        table = ColumnTable(self.store.folder, extractor, elsewhere)
        missing = [record for row in table.missing(self.records()) for record in row]
        if self.painter is not None:
            self._draw({record.index for record in missing if not self.store.has_picture(record)})
        table.compute(
            self.records(), self.store.open, batch_size=self.batch_size, group=self.group, progress=self.progress
        )
        if self.group.is_main:
            table.merge(list(self.store.records().values()))
        self.group.barrier()
        return table.read(self.records())

    def _draw(self, missing: Collection[int]) -> None:
        self.group.barrier()  # Every process must list the missing pictures before the first one is drawn.
        if self.painter is not None and self.assignment is not None and missing:
            draw(
                self.painter,
                self.assignment,
                self.store,
                missing,
                batch_size=self.batch_size,
                group=self.group,
                progress=self.progress,
            )
        self.group.barrier()
        if self.group.is_main:
            self.store.merge()
        self.group.barrier()
