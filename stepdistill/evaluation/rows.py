"""Evaluate students beside their teacher: one folder per row, and one `results.json` of all rows."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from stepdistill.assets import cache_folder, resolve_path
from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.application import EvaluationOptions, evaluate
from stepdistill.evaluation.catalogue import chosen_metrics, distance_to_teacher, metric_named
from stepdistill.evaluation.document import ModelRecord, ResultRow, write_document
from stepdistill.evaluation.embedded.problem import FLOOR_SEED, emoji_world, floor_painter
from stepdistill.evaluation.pages.tables import write_pictures
from stepdistill.evaluation.picture_store import PictureStore
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Protocol, record_hash
from stepdistill.evaluation.run_record import identity
from stepdistill.evaluation.samplers import stock_samplers
from stepdistill.evaluation.sources import Drawn, Source, describe
from stepdistill.evaluation.timing import CostRules

NUM_SHOWN = 16
"""Pictures of each row in the report."""
NO_COST = CostRules(repeats=0, throughput_batch=0)


@dataclass(frozen=True)
class Teacher:
    """A stock pipeline of the teacher and its call.

    Attributes:
        pipeline: without adapters.
        source: path or hub id.
        steps: its full number of steps.
        guidance_scale: of its call.
        arguments: further arguments of its call.
        autocast: dtype of the autocast region.
    """

    pipeline: DiffusionPipeline
    source: str
    steps: int
    guidance_scale: float
    arguments: Mapping[str, Any]
    autocast: torch.dtype = torch.float32

    def at(self, steps: int, sampler: str | None = None, scheduler: Any = None) -> Drawn:
        """The teacher at a number of steps, by default with its own sampler."""
        call = {"num_inference_steps": steps, "guidance_scale": self.guidance_scale, **self.arguments}
        source = Source(self.source, name=f"teacher {steps_in_words(steps)}", kind="teacher")
        return describe(self.pipeline, call, source, scheduler=scheduler, sampler=sampler, autocast=self.autocast)


@dataclass(frozen=True)
class RunEvaluation:
    """Evaluates the rows of a run under one protocol.

    Attributes:
        protocol: what is measured.
        prompts: of the protocol.
        metrics: names; None for the protocol's default metrics.
        options: how; `out` is the run folder, `teacher` a folder of teacher rows that runs share.
        group: the processes that share the work.
    """

    protocol: Protocol
    prompts: PromptSet
    metrics: Sequence[str] | None
    options: EvaluationOptions
    group: ProcessGroup

    def run(self, teacher: Teacher, students: Sequence[Drawn]) -> dict[str, Any]:
        """Evaluate the rows, write `results.json` and the report's pictures, and return the document.

        The rows: teacher at full steps, teacher at each student's number of steps, students, and the floor if the protocol
        has one.
        """
        full = self.row(teacher.at(teacher.steps), None)
        rows = [replace(full.row, frechet_distance_to_teacher=None)]
        shown = {full.row.name or "": full.pictures()}
        few = dict.fromkeys(student.model.steps for student in students)
        others = [self.few_step_teacher(teacher, steps) for steps in few if steps is not None]
        for drawn in [*others, *students]:
            scored = self.row(drawn, full.folder)
            rows.append(scored.row)
            shown[scored.row.name or ""] = scored.pictures()
        if self.protocol.is_embedded:
            rows.append(self.row(floor(), None).row)
        document = {"schema": 1, "protocol": self.protocol.to_json(), "rows": [asdict(row) for row in rows]}
        if self.group.is_main:
            write_document(document, self.options.out)
            write_pictures(shown, self.prompts.prompts[:NUM_SHOWN], self.options.out)
        return document

    def row(self, drawn: Drawn, teacher: Path | None) -> ScoredRow:
        """Evaluate one row.

        Args:
            drawn: the model.
            teacher: folder of the teacher's full row; None for that row and for the floor.
        """
        has_reference = self.options.reference is not None or self.protocol.is_embedded
        names, protocol = chosen_metrics(self.metrics, self.protocol, has_reference=has_reference, has_teacher=False)
        to_teacher = distance_to_teacher(protocol)
        if teacher is None:
            names = [name for name in names if metric_named(name).compared_with != "teacher"]
        elif to_teacher is not None and to_teacher not in names:
            names.append(to_teacher)
        return self.scored(drawn, self.prompts, names, protocol, self.options.cost, teacher)

    def few_step_teacher(self, teacher: Teacher, steps: int) -> Drawn:
        """The teacher at few steps, with the stock sampler of the lowest Frechet distance if the protocol searches for it."""
        if not self.protocol.sampler_search:
            return teacher.at(steps)
        found: dict[str, tuple[float, Drawn]] = {}
        prompts = self.prompts.first(min(self.protocol.sampler_search, len(self.prompts)))
        for name, scheduler in stock_samplers(teacher.pipeline).items():
            drawn = teacher.at(steps, name, scheduler)
            scored = self.scored(drawn, prompts, ["frechet_distance"], self.protocol, NO_COST, None)
            found[name] = (scored.row.frechet_distance or 0.0, drawn)
        best = found[min(found, key=lambda name: found[name][0])][1]
        search = {name: round(distance, 4) for name, (distance, _) in found.items()}
        return replace(best, model=best.model.model_copy(update={"sampler_search": search}))

    def scored(
        self,
        drawn: Drawn,
        prompts: PromptSet,
        names: Sequence[str],
        protocol: Protocol,
        cost: CostRules,
        teacher: Path | None,
    ) -> ScoredRow:
        """Evaluate a model in its folder."""
        folder, is_shared = self.folder_of(drawn)
        options = replace(
            self.options,
            out=folder,
            cost=cost,
            teacher=teacher,
            num_scenes=len(self.prompts),
            keep=NUM_SHOWN if self.protocol.is_embedded else None,
            overwrite=not is_shared,
        )
        with locked(folder, self.group):
            results = evaluate(drawn, protocol, prompts, names, options, self.group)
            if is_shared and self.group.is_main:  # times of another process do not compare
                (folder / "cost.json").unlink(missing_ok=True)
        return ScoredRow(results.row, folder)

    def folder_of(self, drawn: Drawn) -> tuple[Path, bool]:
        """A row's folder, and whether runs share it: they share embedded teachers, the floor, and the folder of --teacher."""
        kind, shared = drawn.model.kind, self.options.teacher
        if kind == "teacher" and shared is not None:
            return shared / slug(drawn.model.name), True
        cache = cache_folder("evaluation")
        if kind == "student" or not self.protocol.is_embedded or cache is None:
            return self.options.out / "evaluation" / slug(drawn.model.name), False
        record = identity(self.protocol, drawn.model, self.options.file_format)
        address = record_hash({**record, "prompts": self.prompts.first(8).digest})
        folder, shipped = cache / address, resolve_path(f"assets/emoji/measured/{address}")
        if self.group.is_main and shipped.is_dir() and not folder.exists():
            shutil.copytree(shipped, folder)
        return folder, True


@dataclass(frozen=True)
class ScoredRow:
    """A row and the folder it was evaluated in."""

    row: ResultRow
    folder: Path

    def pictures(self) -> list[Image.Image]:
        """The first pictures of the row."""
        store = PictureStore(self.folder)
        records = list(store.records().values())[:NUM_SHOWN]
        return [store.open(record) for record in records]


def floor() -> Drawn:
    """Real pictures in place of a model's: the distance that chance alone makes."""
    world = emoji_world()
    source = f"scenes of seed {FLOOR_SEED}"
    return Drawn(ModelRecord(name="floor", source=source, kind="floor"), floor_painter(world))


def slug(name: str) -> str:
    """A row's name as a folder name.

    >>> slug("teacher 50 steps")
    'teacher-50-steps'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-")


@contextmanager
def locked(folder: Path, group: ProcessGroup) -> Iterator[None]:
    """Exclude other runs from a folder that several may write."""
    if not group.is_main:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
