"""The pictures of a protocol: drawn from one seed each, kept in a folder, gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepdistill.errors import UserError
from stepdistill.evaluation.generation import Generation, batches, generate, prompt_seed
from stepdistill.evaluation.picture_store import (
    MANIFEST,
    PictureRecord,
    PictureStore,
    content_digest,
    picture_files,
    read_manifest,
    write_manifest,
)
from stepdistill.evaluation.processes import Crew
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Benchmark
from stepdistill.metrics.preprocess import to_bytes, to_pictures

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the rows done and the rows wanted by this process."""


@dataclass(frozen=True)
class Assignment:
    """Everything that is to be drawn: a protocol and its prompts."""

    protocol: Benchmark
    prompts: PromptSet

    def __len__(self) -> int:
        return len(self.prompts) * self.protocol.samples_per_prompt

    def record(self, index: int) -> dict[str, Any]:
        """What the manifest says of a picture before it is drawn."""
        number, sample = divmod(index, self.protocol.samples_per_prompt)
        return {
            "index": index,
            "prompt_index": number,
            "sample": sample,
            "prompt": self.prompts.prompts[number],
            "id": self.prompts.ids[number],
            "category": self.prompts.categories[number],
            "seed": prompt_seed(self.protocol.seed, number, sample),
        }


def draw(
    generation: Generation,
    assignment: Assignment,
    store: PictureStore,
    *,
    batch_size: int,
    crew: Crew,
    progress: Progress | None = None,
) -> None:
    """Draw what is missing; every process its blocks.

    A block that lost a picture is drawn anew as a whole: a picture may depend on its batch in the last bit.
    """
    done = store.records()
    blocks = [
        rows
        for rows in batches(len(assignment), batch_size)
        if any(index not in done for index in range(rows.start, rows.stop))
    ]
    crew.wait()  # All have to see the same blocks missing before the first is filled.
    own = crew.share(blocks)
    for number, rows in enumerate(own, start=1):
        records = [assignment.record(index) for index in range(rows.start, rows.stop)]
        prompts, seeds = [record["prompt"] for record in records], [record["seed"] for record in records]
        images = generate(generation, prompts, seeds)
        store.add(to_pictures(to_bytes(images, rounding=assignment.protocol.rounding)), records)
        if progress is not None:
            progress("pictures", number, len(own))


def adopt(folder: Path, store: PictureStore, assignment: Assignment | None) -> None:
    """A manifest for pictures that are there already: by the folder's own manifest, or in the order of their names.

    Args:
        folder: of the pictures, with subfolders.
        store: gets the manifest; pictures stay where they are.
        assignment: the prompts that the pictures belong to, in the order of the file names; None where none are known.

    Raises:
        UserError: pictures and prompts are not equally many, or the folder's manifest is of other prompts.
    """
    if (folder / MANIFEST).is_file():
        records = [_moved(record, folder) for record in read_manifest(folder / MANIFEST)]
        if assignment is not None:
            _check_prompts(records, assignment, folder)
    else:
        files = picture_files(folder)
        if assignment is not None and len(files) != len(assignment):
            raise UserError(
                f"'{folder}' holds {len(files)} pictures, but the prompts ask for {len(assignment)}; "
                "give the prompts of these pictures with --prompts, or fewer with --limit"
            )
        records = [_found(index, path, assignment) for index, path in enumerate(files)]
    write_manifest(store.folder / MANIFEST, records)


def _moved(record: PictureRecord, folder: Path) -> PictureRecord:
    return PictureRecord(**{**vars(record), "file": str((folder / record.file).resolve())})


def _check_prompts(records: Sequence[PictureRecord], assignment: Assignment, folder: Path) -> None:
    wanted = [assignment.record(index)["prompt"] for index in range(len(assignment))]
    if [record.prompt for record in records] != wanted:
        raise UserError(
            f"the pictures in '{folder}' are of other prompts, says their {MANIFEST}; give the same --protocol, --prompts and --limit"
        )


def _found(index: int, path: Path, assignment: Assignment | None) -> PictureRecord:
    content = path.read_bytes()
    known: dict[str, Any] = {
        "index": index, "prompt_index": index, "sample": 0, "prompt": "", "id": path.stem, "category": None,
    } if assignment is None else assignment.record(index)  # fmt: skip
    known |= {"seed": None, "file": str(path.resolve()), "bytes": len(content)}
    return PictureRecord(**known, digest=content_digest(content))
