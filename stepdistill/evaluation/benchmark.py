"""A protocol from end to end: pictures -> manifest -> columns -> numbers, each stage gone on with after a kill.

The output folder:

    run.json                what draws; a folder is of one run
    images/, manifest.jsonl the pictures, without loss, and what each is
    scores/EYE.parquet      columns of each eye, one row a picture
    reference/, teacher/    manifest and columns of what is compared with
    cost.json, results.json
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepdistill.errors import UserError
from stepdistill.evaluation.catalogue import chosen_metrics, metric_named, shown, variant_of
from stepdistill.evaluation.document import CostRecord, ModelRecord, Number, Part, RunResults
from stepdistill.evaluation.drawing import Assignment, Progress, adopt, draw
from stepdistill.evaluation.eyes import PairEye, open_eye
from stepdistill.evaluation.generation import Generation
from stepdistill.evaluation.picture_store import PARTS, FileFormat, PictureStore, write_text
from stepdistill.evaluation.processes import Crew
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Benchmark
from stepdistill.evaluation.real_sides import (
    Features,
    Moments,
    Surroundings,
    open_real_side,
    picture_features,
    scored,
)
from stepdistill.evaluation.reductions import Reduced
from stepdistill.evaluation.run_record import claim, earlier_numbers, prompts_digest, run_document
from stepdistill.evaluation.scoring import Columns, Eye, ScoreTable
from stepdistill.evaluation.timing import CostRules, measure_cost
from stepdistill.metrics.networks.lpips import LPIPS


@dataclass(frozen=True)
class BenchmarkOptions:
    """How a protocol is run; none of it changes what is measured.

    Attributes:
        out: the folder of this run.
        batch_size: pictures that are drawn, and scored, at once.
        file_format: png or webp, both without loss.
        reference: statistics (.npz, .pkl) or a folder of real pictures.
        teacher: folder of the teacher's pictures of the same prompts and seeds, such as another run's.
        cost: rules of the timings.
        progress: told of every block.
    """

    out: Path
    batch_size: int = 8
    file_format: FileFormat = "png"
    reference: str | None = None
    teacher: Path | None = None
    cost: CostRules = field(default_factory=CostRules)
    progress: Progress | None = None


@dataclass(frozen=True)
class Drawn:
    """What is scored: a pipeline that draws, or pictures that are there."""

    model: ModelRecord
    generation: Generation | None = None
    folder: Path | None = None


def run_benchmark(
    drawn: Drawn,
    protocol: Benchmark,
    prompts: PromptSet | None,
    metrics: Sequence[str] | None,
    options: BenchmarkOptions,
    crew: Crew | None = None,
) -> RunResults:
    """Draw what is missing, score what is not scored, and write `results.json`.

    Args:
        drawn: the pipeline, or the folder of pictures.
        protocol: what is measured.
        prompts: of the protocol; None only for pictures whose prompts are unknown or in their own manifest.
        metrics: names, or `name=variant`; None for the protocol's usual ones.
        options: where and how.
        crew: the processes that share the work.

    Raises:
        UserError: the folder is of another run, or something that a metric needs is missing.
    """
    crew = crew or Crew.join()
    names, protocol = chosen_metrics(
        metrics,
        protocol,
        has_reference=options.reference is not None,
        has_teacher=options.teacher is not None,
    )
    assignment = None if prompts is None else Assignment(protocol, prompts)
    run = _Run(drawn, protocol, assignment, options, crew)
    run.pictures()
    cost = run.cost()
    numbers: dict[str, Number] = {}
    for variant in dict.fromkeys(variant_of(name, protocol) for name in names):
        numbers |= run.numbers(variant, [name for name in names if variant_of(name, protocol) == variant])
    records = list(run.store.records().values())
    numbers = earlier_numbers(options.out, records) | numbers
    results = run_document(protocol, drawn.model, records, numbers, cost)
    if crew.is_first:
        results.write(options.out)
        shutil.rmtree(options.out / PARTS, ignore_errors=True)
    crew.wait()
    return results


class _Run:
    """One call of `run_benchmark`."""

    def __init__(
        self,
        drawn: Drawn,
        protocol: Benchmark,
        assignment: Assignment | None,
        options: BenchmarkOptions,
        crew: Crew,
    ) -> None:
        self.drawn, self.protocol, self.assignment = drawn, protocol, assignment
        self.options, self.crew = options, crew
        self.store = PictureStore(options.out, options.file_format)
        self.around = Surroundings(options.out, options.batch_size, crew, options.progress)

    def pictures(self) -> None:
        """Draw or adopt, until the manifest is whole."""
        claim(self.options.out, self.identity(), self.crew)
        if self.drawn.generation is None and self.crew.is_first:
            adopt(self.drawn.folder or self.options.out, self.store, self.assignment)
        elif self.drawn.generation is not None and self.assignment is not None:
            draw(
                self.drawn.generation,
                self.assignment,
                self.store,
                batch_size=self.options.batch_size,
                crew=self.crew,
                progress=self.options.progress,
            )
        self.crew.wait()
        if self.crew.is_first:
            self.store.merge()
        self.crew.wait()

    def identity(self) -> dict[str, Any]:
        """What the pictures follow from."""
        protocol, model = self.protocol, self.drawn.model
        return {
            "prompts": None if self.assignment is None else self.assignment.prompts.digest,
            "seed": protocol.seed,
            "samples_per_prompt": protocol.samples_per_prompt,
            "rounding": protocol.rounding,
            "file_format": self.options.file_format,
            **model.model_dump(exclude={"name", "kind", "device"}),
        }

    def cost(self) -> CostRecord:
        """Measured once, by the first process, while the others wait; kept in `cost.json`."""
        path = self.options.out / "cost.json"
        if self.drawn.generation is None or self.assignment is None:
            return CostRecord()
        if self.crew.is_first:
            rules = self.options.cost
            kept = CostRecord.model_validate_json(path.read_text()) if path.is_file() else None
            if kept is None or (kept.latency_s is None and rules.repeats):
                kept = measure_cost(self.drawn.generation, self.assignment.prompts.prompts[0], rules)
                write_text(path, kept.model_dump_json(indent=1) + "\n")
        self.crew.wait()
        return CostRecord.model_validate_json(path.read_text())

    def numbers(self, variant: str, names: Sequence[str]) -> dict[str, Number]:
        """The numbers of all metrics that one eye serves; its weights are let go of after."""
        eye = self.eye(variant)
        columns = scored(self.store, ScoreTable(self.options.out, eye), self.around)
        sides: dict[str, Features | Moments | None] = {"nothing": None}
        found: dict[str, Number] = {}
        for name in names:
            metric = metric_named(name)
            if metric.compares not in sides:
                sides[metric.compares] = self.side(metric.compares, eye)
            side = sides[metric.compares]
            for key, reduced in metric.reduce(columns, name, side).items():
                found[key] = self.number(key, reduced, columns, eye.name, side)
        return found

    def eye(self, variant: str) -> Eye:
        """The eye of a variant; those that look at pairs get the teacher's pictures."""
        if not variant.startswith("pair"):
            return open_eye(variant, self.protocol, self.crew.device)
        folder = self.teacher_folder()
        store = PictureStore(self.options.out / "teacher")
        if self.crew.is_first:
            adopt(folder, store, self.assignment)
        self.crew.wait()
        mine, theirs = self.store.records(), store.records()
        if {index: each.seed for index, each in mine.items()} != {
            index: each.seed for index, each in theirs.items()
        }:
            raise UserError(
                f"'{folder}' was drawn from other seeds; pairs need the same --protocol, --prompts and --samples"
            )
        return PairEye(
            store, LPIPS.load("vgg").to(self.crew.device) if variant.endswith("lpips-vgg") else None
        )

    def side(self, compares: str, eye: Eye) -> Features | Moments | None:
        """What the eye's features are compared with."""
        if compares == "teacher" and eye.name.startswith("pair"):
            return None
        folder = self.options.out / ("teacher" if compares == "teacher" else "reference")
        around = Surroundings(folder, self.options.batch_size, self.crew, self.options.progress)
        if compares == "teacher":
            return picture_features(self.teacher_folder(), eye, around, self.assignment)
        return open_real_side(self.options.reference, eye, around, num_scenes=len(self.store.records()))

    def teacher_folder(self) -> Path:
        """The folder of the teacher's pictures.

        Raises:
            UserError: none was given.
        """
        if self.options.teacher is None:
            raise UserError(
                "this metric compares with the teacher: give --teacher FOLDER, a run of it on the same prompts"
            )
        if not self.options.teacher.is_dir():
            raise UserError(f"--teacher: there is no folder '{self.options.teacher}'")
        return self.options.teacher

    def number(
        self, key: str, reduced: Reduced, columns: Columns, variant: str, side: Features | Moments | None
    ) -> Number:
        """A reduced value with everything that says what it is."""
        digest = None if side is None else side.digest
        title, better = shown(key)
        pictures = len(columns)
        if len(columns) < len(self.store.records()):
            pictures = len(self.store.records())
        return Number(
            value=reduced.whole.value,
            standard_error=reduced.whole.standard_error,
            n=pictures,
            variant=variant,
            protocol=self.protocol.number_hash(
                variant, prompts=prompts_digest(self.store.records().values()), reference=digest
            ),
            protocol_name=self.protocol.name,
            title=title,
            better=better,
            reference=digest,
            by_category={
                category: Part(value=estimate.value, standard_error=estimate.standard_error, n=n)
                for category, (estimate, n) in reduced.by_category.items()
            },
        )
