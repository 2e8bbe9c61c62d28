"""Eyes by the name of their variant: what turns pictures into the columns that numbers are made of.

A protocol says which variant a metric's name stands for; `open_eye` makes it. Weights are looked for only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from stepdistill.data.emoji import EmojiWorld
from stepdistill.errors import UserError
from stepdistill.evaluation.embedded.emoji import answers_of, load_evaluator
from stepdistill.evaluation.embedded.evaluator import Evaluator
from stepdistill.evaluation.embedded.scorers import background_error, is_right
from stepdistill.evaluation.picture_store import PictureRecord, PictureStore
from stepdistill.evaluation.protocols import EMOJI, Benchmark, record_hash
from stepdistill.evaluation.scoring import Eye
from stepdistill.metrics.diversity import mean_pairwise_cosine, vendi_score
from stepdistill.metrics.networks.base import FeatureNetwork, PatchFeatures
from stepdistill.metrics.networks.clip import CMMDFeatures, emoji_clip
from stepdistill.metrics.networks.dino import DinoFeatures
from stepdistill.metrics.networks.inception import VARIANTS, InceptionFeatures
from stepdistill.metrics.networks.lpips import LPIPS
from stepdistill.metrics.paired import psnr, ssim
from stepdistill.metrics.preprocess import of_pictures, square
from stepdistill.metrics.scorers.base import PromptScorer
from stepdistill.metrics.scorers.loading import ALIASES, SCORERS, load_scorer

Pictures = Sequence[Image.Image]


def one_size(pictures: Pictures, asked_by: str) -> Tensor:
    """Pictures of one size as images (B, 3, H, W) in [0, 1].

    Raises:
        UserError: they differ in size.
    """
    if len({picture.size for picture in pictures}) > 1:
        raise UserError(f"{asked_by} needs pictures of one size; resize them first")
    return of_pictures(pictures).float() / 255


class PixelEye:
    """Mean brightness and contrast, 0 to 255: a cheap alarm for collapse and over-saturation."""

    name = "pixels"
    sees_prompts = False

    def record(self) -> dict[str, Any]:
        """The version of the columns."""
        return {"eye": self.name, "version": 1}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`brightness` is the mean of all levels, `contrast` their standard deviation."""
        del records
        images = [of_pictures([picture]).double() for picture in pictures]
        return {
            "brightness": torch.stack([image.mean() for image in images]),
            "contrast": torch.stack([image.std(correction=0) for image in images]),
        }


class EmojiEye:
    """The eye and the judge of the embedded problem: features, CLIP score, and whether the caption is satisfied."""

    name = "emoji-clip"
    sees_prompts = False

    def __init__(self, evaluator: Evaluator | None = None, world: EmojiWorld | None = None) -> None:
        self.world = world or EmojiWorld()
        self.evaluator = evaluator or load_evaluator(EMOJI, world=self.world, with_floor=False)

    def record(self) -> dict[str, Any]:
        """The feature network with the hash of its weights, and the judge."""
        return {"eye": self.name, "features": self.evaluator.features.name, "judge": EMOJI.judge}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """Columns `features`, `clip`, `prompt_accuracy`, `background_error` and `glyph`."""
        captions = [record.prompt for record in records]
        answers = [answers_of(self.world.answers(caption)) for caption in captions]
        for caption, each in zip(captions, answers, strict=True):
            if not len(each.glyphs) or not len(each.backgrounds):
                raise UserError(f"'{caption}' is no emoji caption, so nothing is known to be right for it")
        measured = self.evaluator.measure(one_size(pictures, "the emoji eye"), captions)
        colours = self.evaluator.judge.background_colours
        rows = [slice(i, i + 1) for i in range(len(captions))]
        right = [
            is_right(measured.glyphs[row], measured.backgrounds[row], each)
            for row, each in zip(rows, answers, strict=True)
        ]
        errors = [
            background_error(measured.colours[row], colours, each)
            for row, each in zip(rows, answers, strict=True)
        ]
        return {
            "features": measured.features.float(),
            "clip": measured.clip_scores.float(),
            "prompt_accuracy": torch.cat(right).float(),
            "background_error": torch.cat(errors).float(),
            "glyph": measured.glyphs,
        }


class FeatureEye:
    """A feature network, after the protocol's crop and resize to a square."""

    sees_prompts = False

    def __init__(self, network: FeatureNetwork, *, side: int | None = None) -> None:
        self.network, self.side = network, side
        self.name = network.name if side is None else f"{network.name}/square{side}"

    def record(self) -> dict[str, Any]:
        """The network's own record, with the square."""
        return self.network.protocol() | {"eye": self.name, "square": self.side}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """The column `features`."""
        del records
        return {"features": self.network(squares(pictures, self.side)).float()}


class ScorerEye:
    """A scorer of pictures and prompts."""

    sees_prompts = False

    def __init__(self, scorer: PromptScorer) -> None:
        self.scorer, self.name = scorer, scorer.name

    def record(self) -> dict[str, Any]:
        """The scorer's own record."""
        return dict(self.scorer.description()) | {"eye": self.name}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """The column `score`."""
        prompts = [record.prompt for record in records]
        if not any(prompts):
            raise UserError(f"{self.name} needs the prompts of the pictures: give --prompts FILE")
        # One tensor where it can be: users' functions are made for it, and a network does not care.
        is_even = len({picture.size for picture in pictures}) == 1
        images = one_size(pictures, self.name) if is_even else pictures
        return {"score": self.scorer(images, prompts).float().cpu()}


class DiversityEye:
    """How much the pictures of one prompt differ over seeds: a mean over pairs, and the effective number of different ones."""

    sees_prompts = True

    def __init__(
        self, name: str, *, features: FeatureNetwork | None = None, lpips: LPIPS | None = None
    ) -> None:
        self.name, self.features, self.lpips = name, features, lpips

    def record(self) -> dict[str, Any]:
        """The networks."""
        network = {} if self.features is None else self.features.protocol()
        return {"eye": self.name, "lpips": None if self.lpips is None else self.lpips.name, **network}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`cosine_diversity` and `vendi` of features, `lpips_diversity` of LPIPS, one row a prompt."""
        count = sum(record.prompt_index == records[0].prompt_index for record in records)
        groups = [pictures[start : start + count] for start in range(0, len(pictures), count)]
        columns: dict[str, list[float]] = {}
        for group in groups:
            if self.features is not None:
                features = self.features(one_size(group, self.name))
                columns.setdefault("cosine_diversity", []).append(mean_pairwise_cosine(features))
                columns.setdefault("vendi", []).append(vendi_score(features))
            if self.lpips is not None:
                distances = self.lpips.pairwise(one_size(group, self.name))
                columns.setdefault("lpips_diversity", []).append(float(distances.double().mean()))
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}


class PairEye:
    """How near each picture is to the teacher's of the same prompt and seed: PSNR, SSIM and, where it is given, LPIPS."""

    sees_prompts = False

    def __init__(self, teacher: PictureStore, lpips: LPIPS | None = None) -> None:
        self.teacher, self.lpips = teacher, lpips
        self.name = "pair" if lpips is None else f"pair/{lpips.name.replace('/', '-')}"
        self.partners = teacher.records()

    def record(self) -> dict[str, Any]:
        """The teacher's pictures."""
        digests = [record.digest for record in self.partners.values()]
        return {"eye": self.name, "teacher": record_hash({"pictures": digests})}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """Columns `psnr`, `ssim` and `lpips`."""
        own = one_size(pictures, "a pair")
        others = one_size([self.teacher.open(self.partners[record.index]) for record in records], "a pair")
        if own.shape != others.shape:
            raise UserError(
                f"the teacher's pictures are {others.shape[3]} x {others.shape[2]}, not {own.shape[3]} x {own.shape[2]}: "
                "draw both at one size"
            )
        columns = {"psnr": psnr(own, others), "ssim": ssim(own, others)}
        return columns if self.lpips is None else columns | {"lpips": self.lpips(own, others)}


def squares(pictures: Pictures, side: int | None) -> Pictures:
    """Centre squares of that side, by LANCZOS; the pictures themselves where None."""
    return pictures if side is None else [square(picture, side) for picture in pictures]


EyeMaker = Callable[[Benchmark, torch.device], Eye]


def _inception(variant: str) -> EyeMaker:
    return lambda protocol, device: FeatureEye(
        InceptionFeatures.load(variant).to(device), side=protocol.square
    )


def _patch(protocol: Benchmark, device: torch.device) -> Eye:
    return FeatureEye(PatchFeatures(InceptionFeatures.load("clean").to(device)))


EYES: dict[str, EyeMaker] = {
    "pixels": lambda protocol, device: PixelEye(),
    "emoji-clip": lambda protocol, device: EmojiEye(),
    **{f"inception/{variant}": _inception(variant) for variant in VARIANTS},
    "inception/clean/patch-center299": _patch,
    "dinov2-large/pil": lambda protocol, device: FeatureEye(DinoFeatures.load().to(device)),
    "cmmd": lambda protocol, device: FeatureEye(CMMDFeatures.load().to(device)),
    "diversity/emoji-clip": lambda protocol, device: DiversityEye(
        "diversity/emoji-clip", features=emoji_clip()
    ),
    "diversity/lpips-vgg": lambda protocol, device: DiversityEye(
        "diversity/lpips-vgg", lpips=LPIPS.load("vgg").to(device)
    ),
    "diversity/dinov2-large": lambda protocol, device: DiversityEye(
        "diversity/dinov2-large", features=DinoFeatures.load().to(device)
    ),
}
"""Variants by name."""


def open_eye(variant: str, protocol: Benchmark, device: torch.device) -> Eye:
    """The eye of a variant, its weights loaded.

    Raises:
        UserError: there is none of that name, or its weights are not to be had.
    """
    if variant in EYES:
        return EYES[variant](protocol, device)
    if variant not in SCORERS and variant not in ALIASES and ":" not in variant:
        raise UserError(
            f"there is no metric variant '{variant}'; there are {', '.join([*EYES, *SCORERS])} and package.module:function"
        )
    scorer = load_scorer(variant)
    return ScorerEye(scorer.to(device) if isinstance(scorer, nn.Module) else scorer)
