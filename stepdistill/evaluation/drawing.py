"""Draw the pictures of a protocol, each from its own seed, into a folder; an interrupted run resumes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepdistill.errors import UserError
from stepdistill.evaluation.generation import batches, prompt_seed
from stepdistill.evaluation.picture_store import (
    MANIFEST,
    PictureRecord,
    PictureStore,
    content_digest,
    picture_files,
    read_manifest,
    write_manifest,
)
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.metrics.preprocess import to_bytes, to_pictures
from stepdistill.typing import Images

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the blocks done and the blocks of this process."""
Painter = Callable[[Sequence[dict[str, Any]]], Images]
"""Records (index, prompt, seed, ...) to images (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Assignment:
    """The pictures to draw: `samples` of each prompt.

    Attributes:
        prompts: the prompts in order.
        seed: of the protocol.
        samples: pictures of each prompt.
        first_sample: number of the first sample; it enters the seed.
        numbers: the prompts' numbers, which enter the seeds; default: 0, 1, 2, ...
        rounding: conversion from floats to 8 bits.
    """

    prompts: PromptSet
    seed: int = 0
    samples: int = 1
    first_sample: int = 0
    numbers: tuple[int, ...] | None = None
    rounding: Literal["round", "truncate"] = "round"

    def __len__(self) -> int:
        return len(self.prompts) * self.samples

    def record(self, index: int) -> dict[str, Any]:
        """The manifest's fields that are known before the picture is drawn."""
        place, sample = divmod(index, self.samples)
        number = place if self.numbers is None else self.numbers[place]
        return {
            "index": index,
            "prompt_index": number,
            "sample": self.first_sample + sample,
            "prompt": self.prompts.prompts[place],
            "id": self.prompts.ids[place],
            "category": self.prompts.categories[place],
            "seed": prompt_seed(self.seed, number, self.first_sample + sample),
        }


def draw(
    painter: Painter,
    assignment: Assignment,
    store: PictureStore,
    missing: Collection[int],
    *,
    batch_size: int,
    group: ProcessGroup,
    progress: Progress | None = None,
) -> None:
    """Draw every block that contains a missing picture; blocks are shared between processes.

    A block is redrawn as a whole: the batch may change the last bit of a picture.
    """
    blocks = [
        rows
        for rows in batches(len(assignment), batch_size)
        if any(index in missing for index in range(rows.start, rows.stop))
    ]
    own = group.share(blocks)
    for number, rows in enumerate(own, start=1):
        records = [assignment.record(index) for index in range(rows.start, rows.stop)]
        images = painter(records)
        store.add(to_pictures(to_bytes(images, rounding=assignment.rounding)), records)
        if progress is not None:
            progress("pictures", number, len(own))


def adopt(folder: Path, store: PictureStore, assignment: Assignment | None) -> None:
    """Write a manifest for existing pictures: from the folder's own manifest, or in the order of the file names.

    Args:
        folder: contains the pictures, subfolders included.
        store: receives the manifest; the pictures stay where they are.
        assignment: the prompts the pictures belong to, in the order of the file names; None if unknown.

    Raises:
        UserError: the number of pictures differs from that of the prompts, or the folder's manifest has other prompts.
    """
    if (folder / MANIFEST).is_file():
        records = [_moved(record, folder) for record in read_manifest(folder / MANIFEST)]
        if assignment is not None:
            records = records[: len(assignment)]
            check_prompts(records, assignment, folder)
            if len(records) < len(assignment):
                raise UserError(
                    f"'{folder}' has {len(records)} of {len(assignment)} pictures; give fewer prompts with --limit"
                )
    else:
        files = picture_files(folder)
        if assignment is not None and len(files) != len(assignment):
            raise UserError(
                f"'{folder}' contains {len(files)} pictures for {len(assignment)} prompts; "
                "give the prompts of these pictures with --prompts, or fewer with --limit"
            )
        records = [_found(index, path, assignment) for index, path in enumerate(files)]
    write_manifest(store.folder / MANIFEST, records)


def check_prompts(records: Sequence[PictureRecord], assignment: Assignment, folder: Path) -> None:
    """Check that pictures belong to the prompts of an assignment.

    Raises:
        UserError: they belong to other prompts.
    """
    if any(record.prompt != assignment.record(record.index)["prompt"] for record in records):
        raise UserError(
            f"the manifest of '{folder}' lists other prompts; give the same --protocol, --prompts and --limit, or another --out"
        )


def _moved(record: PictureRecord, folder: Path) -> PictureRecord:
    return PictureRecord(**{**vars(record), "file": str((folder / record.file).resolve())})


def _found(index: int, path: Path, assignment: Assignment | None) -> PictureRecord:
    content = path.read_bytes()
    known: dict[str, Any] = {
        "index": index, "prompt_index": index, "sample": 0, "prompt": "", "id": path.stem, "category": None,
    } if assignment is None else assignment.record(index)  # fmt: skip
    known |= {"seed": None, "file": str(path.resolve()), "bytes": len(content)}
    return PictureRecord(**known, digest=content_digest(content))
