"""Evaluate one model under a protocol: pictures -> manifest -> columns -> numbers. Each stage resumes after an interruption.

The output folder:

    run.json                what draws the pictures; a folder belongs to one model
    images/, manifest.jsonl the pictures, lossless, and what each of them is
    scores/VARIANT.parquet  columns of each extractor, one row per picture
    coverage/               the extra pictures of metrics that need several per prompt
    reference/, teacher/    manifest and columns of the pictures compared with
    cost.json, results.json
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stepdistill.errors import UserError
from stepdistill.evaluation.catalogue import chosen_metrics, metric_named, shown, variant_of
from stepdistill.evaluation.columns import Extractor
from stepdistill.evaluation.document import CostRecord, Number, RunResults
from stepdistill.evaluation.drawing import Assignment, Painter, Progress
from stepdistill.evaluation.embedded.problem import coverage_assignment, emoji_world
from stepdistill.evaluation.extractors import PairExtractor, open_extractor
from stepdistill.evaluation.generation import Generation
from stepdistill.evaluation.picture_set import PictureSet
from stepdistill.evaluation.picture_store import PARTS, FileFormat, PictureStore, write_text
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Protocol, record_hash
from stepdistill.evaluation.reductions import Reduced, Reference
from stepdistill.evaluation.references import scene_reference, stored_reference
from stepdistill.evaluation.run_record import claim, earlier_numbers, identity, prompts_digest, run_document
from stepdistill.evaluation.sources import Drawn
from stepdistill.evaluation.timing import CostRules, measure_cost
from stepdistill.metrics.networks.lpips import LPIPS


@dataclass(frozen=True)
class EvaluationOptions:
    """How a protocol is run; none of it changes what is measured.

    Attributes:
        out: the output folder.
        batch_size: pictures drawn, and scored, at once; None: 8.
        file_format: png or webp, both lossless.
        reference: statistics (.npz, .pkl) or a folder of reference pictures.
        num_scenes: reference scenes of the embedded problem; default: as many as pictures.
        teacher: output folder of the teacher, with the same prompts and seeds.
        cost: how costs are measured.
        keep: pictures kept once they are scored; None keeps all.
        overwrite: whether pictures of another model in `out` are deleted.
        progress: called after every block.
    """

    out: Path
    batch_size: int | None = None
    file_format: FileFormat = "png"
    reference: str | None = None
    num_scenes: int | None = None
    teacher: Path | None = None
    cost: CostRules = field(default_factory=CostRules)
    keep: int | None = None
    overwrite: bool = False
    progress: Progress | None = None


def evaluate(
    drawn: Drawn,
    protocol: Protocol,
    prompts: PromptSet | None,
    metrics: Sequence[str] | None,
    options: EvaluationOptions,
    group: ProcessGroup | None = None,
) -> RunResults:
    """Draw the missing pictures, compute the missing columns, and write `results.json`.

    Args:
        drawn: the model, or the folder of pictures.
        protocol: what is measured.
        prompts: of the protocol; None only for existing pictures, if their prompts are unknown or in their manifest.
        metrics: names, or `name=variant`; None for the protocol's default metrics.
        options: where and how.
        group: the processes that share the work.

    Raises:
        UserError: the folder belongs to another model, or something a metric needs is missing.
    """
    group = group or ProcessGroup.join()
    names, protocol = chosen_metrics(
        metrics,
        protocol,
        has_reference=options.reference is not None or protocol.is_embedded,
        has_teacher=options.teacher is not None,
    )
    evaluation = _Evaluation(drawn, protocol, prompts, options, group)
    evaluation.pictures.fill()
    cost = evaluation.cost()
    numbers: dict[str, Number] = {}
    for key in dict.fromkeys((variant_of(name, protocol), metric_named(name).pictures) for name in names):
        own = [name for name in names if (variant_of(name, protocol), metric_named(name).pictures) == key]
        numbers |= evaluation.numbers(*key, own)
    records = evaluation.pictures.records()
    results = run_document(protocol, drawn.model, records, earlier_numbers(options.out, records) | numbers, cost)
    if group.is_main:
        results.write(options.out)
        shutil.rmtree(options.out / PARTS, ignore_errors=True)
        evaluation.drop_pictures()
    group.barrier()
    return results


class _Evaluation:
    """One call of `evaluate`."""

    def __init__(
        self,
        drawn: Drawn,
        protocol: Protocol,
        prompts: PromptSet | None,
        options: EvaluationOptions,
        group: ProcessGroup,
    ) -> None:
        self.drawn, self.protocol, self.prompts = drawn, protocol, prompts
        self.options, self.group = options, group
        record = identity(protocol, drawn.model, options.file_format)
        claim(options.out, record, group, overwrite=options.overwrite)
        assignment = None
        if prompts is not None:
            assignment = Assignment(prompts, protocol.seed, protocol.samples_per_prompt, rounding=protocol.rounding)
        self.pictures = self.picture_set(options.out, assignment, drawn.painter, drawn.folder)

    def picture_set(
        self, folder: Path, assignment: Assignment | None, painter: Painter | None = None, adopted: Path | None = None
    ) -> PictureSet:
        """Pictures whose manifest and columns are in a folder of this evaluation."""
        store = PictureStore(folder, self.options.file_format)
        return PictureSet(
            store, assignment, painter, adopted, self.options.batch_size or 8, self.group, self.options.progress,
            keeps_all=self.options.keep is None,
        )  # fmt: skip

    def coverage_pictures(self) -> PictureSet | None:
        """Several pictures of each of a few captions; None if no caption allows many looks.

        Raises:
            UserError: the pictures are not drawn here.
        """
        if self.drawn.painter is None or self.prompts is None:
            raise UserError("caption_coverage draws pictures of its own: give --pipeline instead of --images")
        assignment = coverage_assignment(self.prompts, self.protocol.seed, emoji_world())
        if assignment is None:
            return None
        pictures = self.picture_set(self.options.out / "coverage", assignment, self.drawn.painter)
        pictures.fill()
        return pictures

    def cost(self) -> CostRecord:
        """Measured once, by the main process, and stored in `cost.json`."""
        path = self.options.out / "cost.json"
        painter = self.drawn.painter
        if not isinstance(painter, Generation) or self.prompts is None:
            return CostRecord()
        if self.group.is_main:
            rules = self.options.cost
            stored = CostRecord.model_validate_json(path.read_text()) if path.is_file() else None
            if stored is None or (stored.latency_s is None and rules.repeats):
                stored = measure_cost(painter, self.prompts.prompts[0], rules)
                write_text(path, stored.model_dump_json(indent=1) + "\n")
        self.group.barrier()
        return CostRecord.model_validate_json(path.read_text())

    def numbers(self, variant: str, which: str, names: Sequence[str]) -> dict[str, Number]:
        """The numbers of all metrics that share an extractor, which is released afterwards."""
        pictures = self.pictures if which == "main" else self.coverage_pictures()
        if pictures is None:
            return {}
        extractor = self.extractor(variant)
        columns = pictures.columns(extractor)
        references: dict[str, Reference | None] = {"nothing": None}
        found: dict[str, Number] = {}
        for name in names:
            metric = metric_named(name)
            if metric.compared_with not in references:
                references[metric.compared_with] = self.reference(metric.compared_with, extractor)
            reference = references[metric.compared_with]
            for key, reduced in metric.reduce(columns, name, reference).items():
                found[key] = self.number(key, reduced, pictures, extractor.name, reference)
        return found

    def extractor(self, variant: str) -> Extractor:
        """The extractor of a variant; variants of pairs take the teacher's pictures.

        Raises:
            UserError: the teacher's pictures have other seeds.
        """
        if not variant.startswith("pair"):
            return open_extractor(variant, self.protocol, self.group.device)
        folder = self.teacher_folder()
        teacher = self.picture_set(self.options.out / "teacher", self.pictures.assignment, adopted=folder)
        teacher.fill()
        if [each.seed for each in self.pictures.records()] != [each.seed for each in teacher.records()]:
            raise UserError(f"'{folder}' has other seeds; pairs need the same --protocol, --prompts and --samples")
        lpips = LPIPS.load("vgg").to(self.group.device) if variant.endswith("lpips-vgg") else None
        return PairExtractor(teacher.store, lpips)

    def reference(self, which: str, extractor: Extractor) -> Reference | None:
        """What an extractor's features are compared with."""
        if which == "teacher":
            if extractor.name.startswith("pair"):
                return None  # pairs are compared by the extractor
            return self.folder_features(self.teacher_folder(), "teacher", self.pictures.assignment, extractor)
        source = self.options.reference
        if source is None:
            return scene_reference(extractor, self.options.num_scenes or len(self.pictures.records()))
        folder = Path(source).expanduser()
        if folder.is_dir():
            return self.folder_features(folder, "reference", None, extractor)
        return stored_reference(source, extractor)

    def folder_features(
        self, folder: Path, name: str, assignment: Assignment | None, extractor: Extractor
    ) -> Reference:
        """Features of a folder of pictures; columns the folder has already are reused."""
        pictures = self.picture_set(self.options.out / name, assignment, adopted=folder)
        pictures.fill()
        values = pictures.columns(extractor, elsewhere=folder).values
        if "features" not in values:
            raise UserError(f"{extractor.name} computes no features, so it has no distance to a reference")
        digests = [record.digest for record in pictures.records()]
        return Reference.of(record_hash({"pictures": digests}), values["features"])

    def teacher_folder(self) -> Path:
        """The teacher's output folder.

        Raises:
            UserError: none was given.
        """
        if self.options.teacher is None:
            raise UserError(
                "this metric compares with the teacher: give --teacher FOLDER, its --out for the same prompts"
            )
        if not self.options.teacher.is_dir():
            raise UserError(f"--teacher: there is no folder '{self.options.teacher}'")
        return self.options.teacher

    def number(
        self, key: str, reduced: Reduced, pictures: PictureSet, variant: str, reference: Reference | None
    ) -> Number:
        """A reduced value with everything it depends on."""
        digest = None if reference is None else reference.digest
        title, better = shown(key)
        records = pictures.records()
        return Number(
            value=reduced.whole.value,
            standard_error=reduced.whole.standard_error,
            n=len(records),
            variant=variant,
            protocol=self.protocol.number_hash(variant, prompts=prompts_digest(records), reference=digest),
            protocol_name=self.protocol.name,
            title=title,
            better=better,
            reference=digest,
            by_category=dict(reduced.by_category),
        )

    def drop_pictures(self) -> None:
        """Delete the pictures that need not be kept."""
        if self.options.keep is not None and self.drawn.painter is not None:
            self.pictures.store.keep_first(self.options.keep)
            PictureStore(self.options.out / "coverage").keep_first(0)
