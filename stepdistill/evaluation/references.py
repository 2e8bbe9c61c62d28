"""What pictures are compared with: statistics on disk, a folder of pictures, or the embedded problem's scenes."""

from __future__ import annotations

from pathlib import Path

from stepdistill.errors import UserError
from stepdistill.evaluation.columns import Extractor
from stepdistill.evaluation.embedded.extractors import EmojiExtractor
from stepdistill.evaluation.embedded.problem import scene_features
from stepdistill.evaluation.extractors import FeatureExtractor
from stepdistill.evaluation.protocols import record_hash
from stepdistill.evaluation.reductions import Reference
from stepdistill.metrics.networks.weights import sha256
from stepdistill.metrics.references import ReferenceStats


def scene_reference(extractor: Extractor, count: int) -> Reference:
    """The first `count` scenes of the embedded problem.

    Raises:
        UserError: the extractor is not the embedded problem's.
    """
    if not isinstance(extractor, EmojiExtractor):
        raise UserError("this metric needs a reference: give --reference STATS.npz or FOLDER")
    values = scene_features(extractor.network, extractor.world, count)
    return Reference.of(record_hash({"scenes": count, "extractor": extractor.record()}), values)


def stored_reference(source: str, extractor: Extractor) -> Reference:
    """Statistics from an .npz or .pkl file.

    Raises:
        UserError: the file is missing, or was computed with another variant.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"--reference: there is no file or folder '{source}'")
    stats = ReferenceStats.load(path)
    if isinstance(extractor, FeatureExtractor):
        stats.require(extractor.record())
        if len(stats.mean) != extractor.network.num_features:
            raise UserError(
                f"'{source}' has {len(stats.mean)} features, {extractor.name} has {extractor.network.num_features}: "
                f"give statistics of {extractor.name}"
            )
    return Reference(sha256(path)[:16], stats.mean, stats.cov)
