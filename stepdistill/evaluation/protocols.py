"""A protocol is data: what is drawn, from which seeds, in which features. Its hash stands beside every number.

`Protocol` is the embedded problem with its exact answers; `Benchmark` is every protocol that scores a folder of pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from stepdistill.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """One way of measuring. Numbers of different hashes are never compared."""

    name: str
    features: str
    """The feature network, by the name of its folder."""
    frechet_features: Literal["pooled", "embedding"]
    """Which of its outputs the Frechet and kernel distances are taken of."""
    judge: str
    """How the glyph and the background of a picture are told."""
    num_images: int
    """Captions measured, one picture each; as many real pictures are the reference, and as many again the floor."""
    coverage_captions: int
    """Captions whose variety is measured."""
    coverage_seeds: int
    """Pictures drawn of each of them."""
    coverage_min_glyphs: int
    """They are the first captions with at least this many right glyphs."""
    seed: int = 0
    """Of the generators of the pictures."""
    reference_seed: int = 90_001
    """Of the real scenes: the reference. The floor takes the next seed."""

    @property
    def hash(self) -> str:
        """Names everything but the number of images, which stands in each row as `n`."""
        record = {name: value for name, value in asdict(self).items() if name != "num_images"}
        return record_hash(record)

    def with_images(self, num_images: int) -> Protocol:
        """The same protocol on fewer or more captions."""
        return replace(self, num_images=num_images)

    def to_json(self) -> dict[str, Any]:
        """All fields and the hash."""
        return asdict(self) | {"hash": self.hash}


EMOJI = Protocol(
    name="emoji",
    features="emoji-clip",
    frechet_features="embedding",
    judge="shapes-1",
    num_images=2000,
    coverage_captions=32,
    coverage_seeds=16,
    coverage_min_glyphs=8,
)
"""The embedded problem: the frozen evaluation captions, real scenes as reference, `emoji-clip` as eye."""


@dataclass(frozen=True)
class Benchmark:
    """A way of measuring pictures of a prompt list: prompts, seeds, size, and which variant each metric's name stands for.

    The deviations of each from the papers that use it are in docs/evaluation.md.
    """

    name: str
    prompts: str | None
    """Where the prompts are: `emoji`, `hub:OWNER/NAME:FILE[,FILE...]`, or None where they have to be given."""
    num_prompts: int
    variants: tuple[tuple[str, str], ...]
    """Name of a metric, and the variant that it stands for here."""
    samples_per_prompt: int = 1
    seed: int = 0
    """Of the pictures: each has a seed made of this one, its prompt's number and its repeat."""
    rounding: Literal["round", "truncate"] = "round"
    """From floats to the 256 levels of a file."""
    square: int | None = None
    """Before Inception the centre square is brought to this side with PIL's LANCZOS filter, real pictures too."""
    reference: str = ""
    """What the real pictures are."""
    source: str = ""
    """Where the protocol was published."""

    @property
    def hash(self) -> str:
        """Of everything but the words in `reference` and `source`."""
        return record_hash(self._record())

    def number_hash(self, variant: str, *, prompts: str, reference: str | None = None) -> str:
        """The address of one number: numbers compare only where it is the same.

        Args:
            variant: what the metric's name stands for.
            prompts: digest of the prompts that were drawn.
            reference: digest of the reference, where the metric has one.
        """
        record = {name: value for name, value in self._record().items() if name not in ("variants", "name")}
        return record_hash(
            record | {"variant": variant, "drawn_prompts": prompts, "reference_digest": reference}
        )

    def variant(self, metric: str) -> str | None:
        """What a metric's name stands for, or None where the protocol does not say."""
        return dict(self.variants).get(metric)

    def with_variant(self, metric: str, variant: str) -> Benchmark:
        """The same with another meaning of a metric's name, hence of another hash."""
        return replace(self, variants=tuple((dict(self.variants) | {metric: variant}).items()))

    def to_json(self) -> dict[str, Any]:
        """All fields and the hash."""
        return asdict(self) | {"variants": dict(self.variants), "hash": self.hash}

    def _record(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("reference", "source")}


def record_hash(record: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a JSON-able record.

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
_DIVERSITY = (
    ("lpips_diversity", "diversity/lpips-vgg"),
    ("cosine_diversity", "diversity/dinov2-large"),
)
_DISTANCES = (
    ("fd_dinov2", "dinov2-large/pil"),
    ("cmmd", "cmmd"),
    ("prdc", "inception/clean"),
)
_DMD2 = (
    ("fid", "inception/clean"),
    ("kid", "inception/clean"),
    ("patch_fid", "inception/clean/patch-center299"),
    ("clip", "clip/vit-g-14-laion2b-dmd2"),
    *_DISTANCES,
    *_PREFERENCE,
    *_DIVERSITY,
)

BENCHMARKS = (
    Benchmark(
        "coco2014-30k-dmd2",
        prompts=None,
        num_prompts=30_000,
        variants=_DMD2,
        rounding="truncate",
        square=256,
        reference="all 40,504 pictures of COCO 2014 val",
        source="https://arxiv.org/abs/2405.14867, appendix G",
    ),
    Benchmark(
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
    Benchmark(
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
    Benchmark(
        "hpsv2-benchmark",
        prompts="hub:zhwang/HPDv2:"
        + ",".join(f"benchmark/{style}.json" for style in ("anime", "concept-art", "paintings", "photo")),
        num_prompts=3200,
        variants=(("clip", "clip/vit-l-14-openai"), *_PREFERENCE, *_DIVERSITY),
        source="https://arxiv.org/abs/2306.09341",
    ),
    Benchmark(
        "partiprompts",
        prompts="hub:nateraw/parti-prompts:PartiPrompts.tsv",
        num_prompts=1632,
        variants=(("clip", "clip/vit-l-14-openai"), *_PREFERENCE, *_DIVERSITY),
        source="https://arxiv.org/abs/2206.10789",
    ),
    Benchmark(
        "emoji",
        prompts="emoji",
        num_prompts=2000,
        variants=(
            ("frechet_distance", "emoji-clip"),
            ("kid", "emoji-clip"),
            ("prdc", "emoji-clip"),
            ("clip", "emoji-clip"),
            ("prompt_accuracy", "emoji-clip"),
            ("background_error", "emoji-clip"),
            ("cosine_diversity", "diversity/emoji-clip"),
        ),
        reference="the real scenes that the captions were drawn from",
        source="the embedded problem",
    ),
)
PROTOCOLS = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def protocol_named(name: str) -> Benchmark:
    """A protocol by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol '{name}'; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
