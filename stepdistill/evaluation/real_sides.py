"""What generated pictures are compared with: statistics on disk, a folder of pictures, or the embedded problem's scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.evaluation.drawing import Assignment, Progress, adopt
from stepdistill.evaluation.embedded.emoji import load_evaluator
from stepdistill.evaluation.eyes import EmojiEye, FeatureEye
from stepdistill.evaluation.picture_store import PictureStore
from stepdistill.evaluation.processes import Crew
from stepdistill.evaluation.protocols import EMOJI, record_hash
from stepdistill.evaluation.scoring import Columns, Eye, ScoreTable
from stepdistill.metrics.networks.weights import sha256
from stepdistill.metrics.references import FeatureStats, ReferenceStats


@dataclass(frozen=True)
class Features:
    """Features of real pictures, all of them."""

    digest: str
    values: Tensor

    def features(self) -> Tensor | None:
        """They themselves (N, d)."""
        return self.values

    def moments(self) -> tuple[Tensor, Tensor]:
        """Their mean and covariance."""
        stats = FeatureStats.of(self.values)
        return stats.mean, stats.cov


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of real pictures, from a file."""

    digest: str
    stats: ReferenceStats

    def features(self) -> Tensor | None:
        """None: they are not known."""
        return None

    def moments(self) -> tuple[Tensor, Tensor]:
        """The file's."""
        return self.stats.mean, self.stats.cov


@dataclass(frozen=True)
class Surroundings:
    """What scoring another folder of pictures takes."""

    folder: Path
    """Gets the manifest and the columns."""
    batch_size: int
    crew: Crew
    progress: Progress | None = None


def open_real_side(
    source: str | None, eye: Eye, around: Surroundings, *, num_scenes: int
) -> Features | Moments:
    """The real side for the features of one eye.

    Args:
        source: an .npz or .pkl of statistics, or a folder of pictures; None for the embedded problem's own scenes.
        eye: whose features are compared.
        around: where the columns of a folder go.
        num_scenes: of the embedded problem.

    Raises:
        UserError: there is no such file or folder, or it was made under another variant.
    """
    if source is None:
        return _scenes(eye, num_scenes)
    path = Path(source).expanduser()
    if path.is_dir():
        return picture_features(path, eye, around, None)
    if not path.is_file():
        raise UserError(f"--reference: there is no file or folder '{source}'")
    stats = ReferenceStats.load(path)
    if isinstance(eye, FeatureEye):
        stats.require(eye.record())
        if len(stats.mean) != eye.network.num_features:
            raise UserError(
                f"'{source}' holds {len(stats.mean)} features, {eye.name} has {eye.network.num_features}: give statistics of {eye.name}"
            )
    return Moments(sha256(path)[:16], stats)


def picture_features(folder: Path, eye: Eye, around: Surroundings, assignment: Assignment | None) -> Features:
    """Features of a folder of pictures; every process sees its share of them.

    Args:
        folder: of the pictures; a run folder's manifest is used.
        eye: whose features.
        around: where the columns go.
        assignment: prompts that the pictures have to be of, or None.
    """
    store = PictureStore(around.folder)
    table = ScoreTable(around.folder, eye)
    columns = scored(
        store,
        table,
        around,
        first=lambda: adopt(folder, store, assignment),
    ).values
    if "features" not in columns:
        raise UserError(f"{eye.name} has no features, so nothing can be compared with real pictures")
    digest = record_hash({"pictures": [record.digest for record in store.records().values()]})
    return Features(digest, columns["features"])


def scored(
    store: PictureStore, table: ScoreTable, around: Surroundings, *, first: Callable[[], None] | None = None
) -> Columns:
    """Columns of a table for the pictures of a store: made by all processes, merged by the first, read by all."""
    if around.crew.is_first and first is not None:
        first()
    around.crew.wait()
    records = list(store.records().values())
    table.make(store, records, batch_size=around.batch_size, crew=around.crew, progress=around.progress)
    around.crew.wait()
    if around.crew.is_first:
        table.merge(records)
    around.crew.wait()
    return table.read(records)


def _scenes(eye: Eye, count: int) -> Features:
    if not isinstance(eye, EmojiEye):
        raise UserError("this metric compares with real pictures: give --reference STATS.npz or FOLDER")
    evaluator = load_evaluator(EMOJI.with_images(count), world=eye.world, with_floor=False)
    values = evaluator.reference.features.float()
    return Features(record_hash({"scenes": EMOJI.hash, "count": count, "eye": eye.record()}), values)
