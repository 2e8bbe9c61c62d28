"""The metrics by name: how each is reduced, what it is compared with, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from stepdistill.errors import UserError, did_you_mean
from stepdistill.evaluation import reductions
from stepdistill.evaluation.protocols import Protocol
from stepdistill.evaluation.reductions import Reduce


class Metric(NamedTuple):
    """A metric, apart from its variant, which the protocol defines."""

    title: str
    better: int
    """1 higher is better, -1 lower is better, 0 neither."""
    reduce: Reduce
    compared_with: Literal["nothing", "reference", "teacher"] = "nothing"
    variant: str | None = None
    """The variant, if it is the same under every protocol."""
    same_as: str | None = None
    """Another metric whose variant is used."""
    pictures: Literal["main", "coverage"] = "main"
    """`coverage`: taken from extra pictures, several of each of a few captions."""


METRICS: dict[str, Metric] = {
    "frechet_distance": Metric("Frechet distance", -1, reductions.frechet, "reference"),
    "fid": Metric("FID", -1, reductions.frechet, "reference"),
    "fid_clean": Metric("FID, clean", -1, reductions.frechet, "reference"),
    "patch_fid": Metric("Patch FID", -1, reductions.frechet, "reference"),
    "fd_dinov2": Metric("FD-DINOv2", -1, reductions.frechet, "reference"),
    "kid": Metric("KID", -1, reductions.kernel, "reference"),
    "prdc": Metric("PRDC", 0, reductions.neighbours, "reference"),
    "cmmd": Metric("CMMD", -1, reductions.clip_distance, "reference"),
    "clip": Metric("CLIP score", 1, reductions.mean),
    "hps": Metric("HPS v2.1", 1, reductions.mean),
    "hps_v2.0": Metric("HPS v2.0", 1, reductions.mean),
    "pickscore": Metric("PickScore", 1, reductions.mean),
    "imagereward": Metric("ImageReward", 1, reductions.mean),
    "aesthetic": Metric("Aesthetic", 1, reductions.mean),
    "prompt_accuracy": Metric("Prompt accuracy", 1, reductions.mean),
    "background_error": Metric("Background error", -1, reductions.mean),
    "background_imbalance": Metric("Background imbalance", -1, reductions.imbalance),
    "caption_coverage": Metric("Coverage of captions", 1, reductions.mean, pictures="coverage"),
    "lpips_diversity": Metric("LPIPS diversity", 1, reductions.mean),
    "cosine_diversity": Metric("Cosine over seeds", -1, reductions.mean),
    "vendi": Metric("Vendi score", 1, reductions.mean, same_as="cosine_diversity"),
    "brightness": Metric("Brightness", 0, reductions.mean, variant="pixels"),
    "contrast": Metric("Contrast", 0, reductions.mean, variant="pixels"),
    "fid_to_teacher": Metric("FID to the teacher", -1, reductions.frechet, "teacher", same_as="fid"),
    "frechet_distance_to_teacher": Metric(
        "Frechet distance to the teacher", -1, reductions.frechet, "teacher", same_as="frechet_distance"
    ),
    "kid_to_teacher": Metric("KID to the teacher", -1, reductions.kernel, "teacher", same_as="kid"),
    "psnr": Metric("PSNR to the teacher", 1, reductions.mean, "teacher", variant="pair"),
    "ssim": Metric("SSIM to the teacher", 1, reductions.mean, "teacher", variant="pair"),
    "lpips": Metric("LPIPS to the teacher", -1, reductions.mean, "teacher", variant="pair/lpips-vgg"),
}
PARTS = {
    "kid_subsets": ("KID, subsets", -1),
    "precision": ("Precision", 1),
    "recall": ("Recall", 1),
    "density": ("Density", 1),
    "coverage": ("Coverage", 1),
}
"""Title and direction of numbers that are part of a metric."""


def chosen_metrics(
    asked: Sequence[str] | None, protocol: Protocol, *, has_reference: bool, has_teacher: bool
) -> tuple[list[str], Protocol]:
    """Resolve the metrics asked for; `name=variant` changes the variant in the returned protocol.

    Without names: the protocol's default metrics that can be measured here.

    Raises:
        UserError: a name is unknown, or the protocol defines no variant for it.
    """
    if not asked:
        return _default_metrics(protocol, has_reference=has_reference, has_teacher=has_teacher), protocol
    names = []
    for word in asked:
        name, _, variant = word.partition("=")
        if variant:
            protocol = protocol.with_variant(name, variant)
        names.append(name)
    for name in names:
        variant_of(name, protocol)
    return list(dict.fromkeys(names)), protocol


def metric_named(name: str) -> Metric:
    """Look up a metric; `package.module:function` is the mean of a user's own scores.

    Raises:
        UserError: there is none of that name; the nearest name is suggested.
    """
    if ":" in name:
        return Metric(name.rpartition(":")[2].replace("_", " "), 1, reductions.mean, variant=name)
    if name not in METRICS:
        hint = did_you_mean(name, METRICS) or f"; known metrics: {', '.join(METRICS)}"
        raise UserError(f"unknown metric '{name}'{hint}")
    return METRICS[name]


def variant_of(name: str, protocol: Protocol) -> str:
    """The variant a metric's name stands for under a protocol.

    Raises:
        UserError: the protocol defines none.
    """
    metric = metric_named(name)
    variant = metric.variant or protocol.variant(metric.same_as or name)
    if variant is None:
        known = ", ".join(dict(protocol.variants))
        raise UserError(
            f"protocol {protocol.name} defines no variant of '{name}'; use one of {known}, or --metrics {name}=VARIANT"
        )
    return variant


def shown(name: str) -> tuple[str, int]:
    """Title and direction of a number; of a user's own scores, higher is better."""
    if name in PARTS:
        return PARTS[name]
    metric = metric_named(name)
    return metric.title, metric.better


def distance_to_teacher(protocol: Protocol) -> str | None:
    """The protocol's Frechet distance to the teacher, or None if it defines no Frechet distance."""
    names = ("frechet_distance", "fid")
    return next((f"{name}_to_teacher" for name in names if protocol.variant(name)), None)


def _default_metrics(protocol: Protocol, *, has_reference: bool, has_teacher: bool) -> list[str]:
    names = [
        name
        for name in protocol.metrics
        if protocol.variant(name) and (has_reference or METRICS[name].compared_with != "reference")
    ]
    if protocol.samples_per_prompt > 1:
        names.append("cosine_diversity")
    if has_teacher:
        names.append(distance_to_teacher(protocol) or "psnr")
    return names
