"""Protocols: which pictures are drawn, from which seeds, and what each metric's name stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from stepdistill.errors import UserError

EMOJI_PROMPTS = "emoji"


@dataclass(frozen=True)
class Protocol:
    """One way of measuring. docs/evaluation.md lists the deviations of each from its paper."""

    name: str
    prompts: str | None
    """Source of the prompts: `emoji`, `hub:OWNER/NAME:FILE[,FILE...]`, or None where the user has to give a file."""
    num_prompts: int
    variants: tuple[tuple[str, str], ...]
    """Pairs of a metric's name and the variant it stands for."""
    samples_per_prompt: int = 1
    seed: int = 0
    """Combined with the prompt's number and the sample's number into the seed of each picture."""
    rounding: Literal["round", "truncate"] = "round"
    """Conversion from floats to 8 bits."""
    square: int | None = None
    """Side of the centre square, resized with PIL's LANCZOS, that Inception sees; applied to references too."""
    metrics: tuple[str, ...] = ("fid", "clip")
    """Metrics measured by default; distances are skipped where there is no reference."""
    sampler_search: int = 0
    """Pictures drawn with each stock sampler to choose the teacher's at few steps; 0 keeps the teacher's own sampler."""
    reference: str = ""
    """Description of the reference pictures."""
    source: str = ""
    """Where the protocol was published."""

    @property
    def hash(self) -> str:
        """Hash of every field that changes a number."""
        return record_hash(self._record())

    @property
    def is_embedded(self) -> bool:
        """Whether the pictures are emoji scenes: right answers are known, and references can be drawn."""
        return self.prompts == EMOJI_PROMPTS

    def number_hash(self, variant: str, *, prompts: str, reference: str | None = None) -> str:
        """Hash of everything one number depends on. Numbers are comparable only under equal hashes.

        Args:
            variant: what the metric's name stands for.
            prompts: digest of the prompts.
            reference: digest of the reference, for metrics that have one.
        """
        record = {name: value for name, value in self._record().items() if name not in ("variants", "name")}
        return record_hash(record | {"variant": variant, "drawn_prompts": prompts, "reference_digest": reference})

    def variant(self, metric: str) -> str | None:
        """The variant a metric's name stands for, or None if the protocol defines none."""
        return dict(self.variants).get(metric)

    def with_variant(self, metric: str, variant: str) -> Protocol:
        """A copy in which the metric stands for another variant; its hash differs."""
        return replace(self, variants=tuple((dict(self.variants) | {metric: variant}).items()))

    def to_json(self) -> dict[str, Any]:
        """All fields and the hash."""
        record = {"variants": dict(self.variants), "metrics": list(self.metrics), "hash": self.hash}
        return asdict(self) | record

    def _record(self) -> dict[str, Any]:
        unhashed = ("metrics", "sampler_search", "reference", "source")
        return {name: value for name, value in asdict(self).items() if name not in unhashed}


def record_hash(record: Mapping[str, Any]) -> str:
    """Hash a JSON-serialisable record to twelve hexadecimal digits.

    >>> record_hash({"a": 1, "b": 2}) == record_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=6).hexdigest()


_PREFERENCE = (
    ("hps", "hps/v2.1"),
    ("hps_v2.0", "hps/v2.0"),
    ("pickscore", "pickscore/logit"),
    ("imagereward", "image_reward"),
    ("aesthetic", "aesthetic"),
)
_DIVERSITY = (("lpips_diversity", "diversity/lpips-vgg"), ("cosine_diversity", "diversity/dinov2-large"))
_DISTANCES = (("fd_dinov2", "dinov2-large/pil"), ("cmmd", "cmmd"), ("prdc", "inception/clean"))
_DMD2 = (
    ("fid", "inception/clean"),
    ("kid", "inception/clean"),
    ("patch_fid", "inception/clean/patch-center299"),
    ("clip", "clip/vit-g-14-laion2b-dmd2"),
    *_DISTANCES,
    *_PREFERENCE,
    *_DIVERSITY,
)

_ALL = (
    Protocol(
        "coco2014-30k-dmd2",
        prompts=None,
        num_prompts=30_000,
        variants=_DMD2,
        rounding="truncate",
        square=256,
        reference="all 40,504 pictures of COCO 2014 val",
        source="https://arxiv.org/abs/2405.14867, appendix G",
    ),
    Protocol(
        "coco2014-10k-sdxl-dmd2",
        prompts=None,
        num_prompts=10_000,
        variants=_DMD2,
        seed=10,
        rounding="truncate",
        square=512,
        reference="the 10,000 pictures of COCO 2014 val that the prompts belong to",
        source="https://arxiv.org/abs/2405.14867, table 2",
    ),
    Protocol(
        "mjhq30k",
        prompts="hub:playgroundai/MJHQ-30K:meta_data.json",
        num_prompts=30_000,
        variants=(
            ("fid", "inception/pytorch_fid"),
            ("fid_clean", "inception/clean"),
            ("kid", "inception/pytorch_fid"),
            ("clip", "clip/vit-l-14-openai"),
            *_DISTANCES,
            *_PREFERENCE,
            *_DIVERSITY,
        ),
        square=512,
        reference="the 30,000 pictures of MJHQ-30K",
        source="https://arxiv.org/abs/2402.17245, measured as by https://github.com/NVlabs/Sana",
    ),
    Protocol(
        "hpsv2-benchmark",
        prompts="hub:zhwang/HPDv2:"
        + ",".join(f"benchmark/{style}.json" for style in ("anime", "concept-art", "paintings", "photo")),
        num_prompts=3200,
        variants=(("clip", "clip/vit-l-14-openai"), *_PREFERENCE, *_DIVERSITY),
        metrics=("hps",),
        source="https://arxiv.org/abs/2306.09341",
    ),
    Protocol(
        "partiprompts",
        prompts="hub:nateraw/parti-prompts:PartiPrompts.tsv",
        num_prompts=1632,
        variants=(("clip", "clip/vit-l-14-openai"), *_PREFERENCE, *_DIVERSITY),
        source="https://arxiv.org/abs/2206.10789",
    ),
    Protocol(
        "emoji",
        prompts=EMOJI_PROMPTS,
        num_prompts=2000,
        variants=(
            ("frechet_distance", "emoji-clip"),
            ("kid", "emoji-clip"),
            ("prdc", "emoji-clip"),
            ("clip", "emoji-clip"),
            ("prompt_accuracy", "emoji-clip"),
            ("background_error", "emoji-clip"),
            ("background_imbalance", "emoji-clip"),
            ("caption_coverage", "emoji-coverage"),
            ("cosine_diversity", "diversity/emoji-clip"),
        ),
        metrics=("frechet_distance", "kid", "clip", "prompt_accuracy", "background_error", "background_imbalance"),
        sampler_search=250,
        reference="the real scenes that the captions were drawn from",
        source="the embedded problem",
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def protocol_named(name: str) -> Protocol:
    """Look up a protocol.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol '{name}'; known protocols: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
