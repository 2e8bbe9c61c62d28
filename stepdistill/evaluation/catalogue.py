"""Metrics by the name that is asked for: how each is shown, reduced, and what it compares with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from stepdistill.errors import UserError
from stepdistill.evaluation import reductions
from stepdistill.evaluation.protocols import Benchmark
from stepdistill.evaluation.reductions import Reduce


class Metric(NamedTuple):
    """What a name stands for, the variant aside, which the protocol says."""

    reduce: Reduce
    compares: Literal["nothing", "real", "teacher"] = "nothing"
    variant: str | None = None
    """Where it is the same under every protocol."""
    same_as: str | None = None
    """Another metric whose variant it takes."""


METRICS: dict[str, Metric] = {
    "frechet_distance": Metric(reductions.frechet, "real"),
    "fid": Metric(reductions.frechet, "real"),
    "fid_clean": Metric(reductions.frechet, "real"),
    "patch_fid": Metric(reductions.frechet, "real"),
    "fd_dinov2": Metric(reductions.frechet, "real"),
    "kid": Metric(reductions.kernel, "real"),
    "prdc": Metric(reductions.neighbours, "real"),
    "cmmd": Metric(reductions.clip_distance, "real"),
    "clip": Metric(reductions.mean),
    "hps": Metric(reductions.mean),
    "hps_v2.0": Metric(reductions.mean),
    "pickscore": Metric(reductions.mean),
    "imagereward": Metric(reductions.mean),
    "aesthetic": Metric(reductions.mean),
    "prompt_accuracy": Metric(reductions.mean),
    "background_error": Metric(reductions.mean),
    "lpips_diversity": Metric(reductions.mean),
    "cosine_diversity": Metric(reductions.mean),
    "vendi": Metric(reductions.mean, same_as="cosine_diversity"),
    "brightness": Metric(reductions.mean, variant="pixels"),
    "contrast": Metric(reductions.mean, variant="pixels"),
    "fid_to_teacher": Metric(reductions.frechet, "teacher", same_as="fid"),
    "frechet_distance_to_teacher": Metric(reductions.frechet, "teacher", same_as="frechet_distance"),
    "kid_to_teacher": Metric(reductions.kernel, "teacher", same_as="kid"),
    "psnr": Metric(reductions.mean, "teacher", variant="pair"),
    "ssim": Metric(reductions.mean, "teacher", variant="pair"),
    "lpips": Metric(reductions.mean, "teacher", variant="pair/lpips-vgg"),
}

SHOWN: dict[str, tuple[str, int]] = {
    "frechet_distance": ("Frechet distance", -1),
    "fid": ("FID", -1),
    "fid_clean": ("FID, clean", -1),
    "patch_fid": ("Patch FID", -1),
    "fd_dinov2": ("FD-DINOv2", -1),
    "kid": ("KID", -1),
    "kid_subsets": ("KID, subsets", -1),
    "precision": ("Precision", 1),
    "recall": ("Recall", 1),
    "density": ("Density", 1),
    "coverage": ("Coverage", 1),
    "cmmd": ("CMMD", -1),
    "clip": ("CLIP score", 1),
    "hps": ("HPS v2.1", 1),
    "hps_v2.0": ("HPS v2.0", 1),
    "pickscore": ("PickScore", 1),
    "imagereward": ("ImageReward", 1),
    "aesthetic": ("Aesthetic", 1),
    "prompt_accuracy": ("Prompt accuracy", 1),
    "background_error": ("Background error", -1),
    "lpips_diversity": ("LPIPS diversity", 1),
    "cosine_diversity": ("Cosine over seeds", -1),
    "vendi": ("Vendi score", 1),
    "brightness": ("Brightness", 0),
    "contrast": ("Contrast", 0),
    "fid_to_teacher": ("FID to the teacher", -1),
    "frechet_distance_to_teacher": ("Frechet distance to the teacher", -1),
    "kid_to_teacher": ("KID to the teacher", -1),
    "psnr": ("PSNR to the teacher", 1),
    "ssim": ("SSIM to the teacher", 1),
    "lpips": ("LPIPS to the teacher", -1),
}
"""Title and direction of each number: 1 higher is better, -1 lower, 0 neither."""


def chosen_metrics(
    asked: Sequence[str] | None, protocol: Benchmark, *, has_reference: bool, has_teacher: bool
) -> tuple[list[str], Benchmark]:
    """The names asked for, and the protocol with the variants that were given as `name=variant`.

    Without names: what the protocol is mostly quoted for, of those that can be measured here.

    Raises:
        UserError: a name is unknown, or the protocol does not say what it stands for.
    """
    if not asked:
        return _usual(protocol, has_reference=has_reference, has_teacher=has_teacher), protocol
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
    """A metric by name; a user's `package.module:function` is a mean of its scores.

    Raises:
        UserError: there is none; the nearest name is proposed.
    """
    if ":" in name:
        return Metric(reductions.mean, variant=name)
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(METRICS)}"
        raise UserError(f"there is no metric '{name}'{hint}")
    return METRICS[name]


def variant_of(name: str, protocol: Benchmark) -> str:
    """What a metric's name stands for under a protocol.

    Raises:
        UserError: the protocol does not say.
    """
    metric = metric_named(name)
    variant = metric.variant or protocol.variant(metric.same_as or name)
    if variant is None:
        known = ", ".join(dict(protocol.variants))
        raise UserError(
            f"the protocol {protocol.name} does not say what '{name}' is; it knows {known}; or give --metrics {name}=VARIANT"
        )
    return variant


def shown(name: str) -> tuple[str, int]:
    """Title and direction of a number; a user's own scorer counts as a score."""
    return SHOWN.get(name, (name.rpartition(":")[2].replace("_", " "), 1))


def _usual(protocol: Benchmark, *, has_reference: bool, has_teacher: bool) -> list[str]:
    if protocol.name == "emoji":
        names = ["frechet_distance", "kid", "clip", "prompt_accuracy", "background_error"]
    elif protocol.name == "hpsv2-benchmark":
        names = ["hps"]
    else:
        names = (["fid"] if has_reference else []) + ["clip"]
    if protocol.samples_per_prompt > 1:
        names.append("cosine_diversity")
    if has_teacher:
        distance = "frechet_distance" if protocol.variant("frechet_distance") else "fid"
        names += [f"{distance}_to_teacher"] if protocol.variant(distance) else ["psnr"]
    return names
