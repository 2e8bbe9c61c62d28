"""A student against its teacher on the same prompts: the distance between the two laws of pictures, and between pictures of one noise.

Needs no real data. PCM calls the first "FID-SD" (https://arxiv.org/abs/2405.18407), others "FID to the base model".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stepdistill.metrics.distances import frechet_distance_of_features
from stepdistill.metrics.networks.features import FeatureNetwork
from stepdistill.metrics.networks.lpips import LPIPS
from stepdistill.metrics.paired import PairedSimilarity
from stepdistill.typing import Images


@dataclass(frozen=True)
class TeacherRun:
    """What the teacher's pictures depend on; a distance to the teacher says nothing without it."""

    teacher: str
    """Path, hub id or hash."""
    steps: int
    guidance_scale: float
    """The standard one, 1.0 = off."""
    seeds: Literal["shared", "independent"]
    """Whether student and teacher start from the same noise."""
    prompts_digest: str

    @classmethod
    def of(
        cls,
        teacher: str,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance_scale: float,
        seeds: Literal["shared", "independent"],
    ) -> TeacherRun:
        """A run on these prompts, in this order."""
        digest = hashlib.blake2b("\n".join(prompts).encode(), digest_size=12).hexdigest()
        return cls(teacher, steps, guidance_scale, seeds, digest)

    def protocol(self) -> dict[str, Any]:
        """All fields, to be stored with `ReferenceStats` and required of it."""
        return {"teacher_run": asdict(self)}


@dataclass(frozen=True)
class TeacherComparison:
    """The distance of student and teacher, what chance alone makes of it, and the likeness of pairs."""

    frechet_distance: float
    floor: float | None
    """The same between two sets of the teacher's own pictures, other seeds: no student gets below it."""
    paired: dict[str, float] | None
    """PSNR, SSIM, LPIPS and cosine at the same noise; None where the seeds are independent."""
    protocol: dict[str, Any]


@torch.no_grad()
def compare_with_teacher(
    network: FeatureNetwork,
    student: Images,
    teacher: Images,
    run: TeacherRun,
    *,
    other_teacher: Images | None = None,
    lpips: LPIPS | None = None,
    batch_size: int = 50,
) -> TeacherComparison:
    """Compare pictures of a student with its teacher's, in [0, 1] and in the order of the same prompts.

    Args:
        network: features of the distance and of the cosine.
        student: pictures (N, 3, H, W).
        teacher: the teacher's for the same prompts (N, 3, H, W); at the same noise where `run.seeds` is "shared".
        run: how the teacher drew.
        other_teacher: the teacher's from other seeds, for the floor.
        lpips: adds LPIPS to the pairs.
        batch_size: pictures that are in the networks at once.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"{len(student)} pictures of the student, {len(teacher)} of the teacher: give one each a prompt"
        )

    def features(images: Images) -> Tensor:
        return torch.cat([network(batch).double().cpu() for batch in images.split(batch_size)])

    of_teacher = features(teacher)
    floor = None
    if other_teacher is not None:
        floor = frechet_distance_of_features(features(other_teacher), of_teacher)
    paired = None
    if run.seeds == "shared":
        metric = PairedSimilarity(lpips=lpips, features=network)
        for pair in zip(student.split(batch_size), teacher.split(batch_size), strict=True):
            metric.update(*pair)
        paired = {name: float(value) for name, value in metric.compute().items()}
    distance = frechet_distance_of_features(features(student), of_teacher)
    return TeacherComparison(distance, floor, paired, network.protocol() | run.protocol())
