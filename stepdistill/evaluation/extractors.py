"""Extractors by the name of their variant. A protocol defines which variant a metric stands for; `open_extractor` loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from stepdistill.errors import UserError
from stepdistill.evaluation.columns import Extractor
from stepdistill.evaluation.embedded.extractors import CoverageExtractor, EmojiExtractor
from stepdistill.evaluation.picture_store import PictureRecord, PictureStore
from stepdistill.evaluation.protocols import Protocol, record_hash
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


class PixelExtractor:
    """Mean brightness and contrast, 0 to 255: a cheap check for collapse and over-saturation."""

    name = "pixels"
    is_per_prompt = False

    def record(self) -> dict[str, Any]:
        return {"extractor": self.name, "version": 1}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`brightness` is the mean of all levels, `contrast` their standard deviation."""
        del records
        images = [of_pictures([picture]).double() for picture in pictures]
        return {
            "brightness": torch.stack([image.mean() for image in images]),
            "contrast": torch.stack([image.std(correction=0) for image in images]),
        }


class FeatureExtractor:
    """Features of a network, after the protocol's crop and resize to a square."""

    is_per_prompt = False

    def __init__(self, network: FeatureNetwork, *, side: int | None = None) -> None:
        self.network, self.side = network, side
        self.name = network.name if side is None else f"{network.name}/square{side}"

    def record(self) -> dict[str, Any]:
        return self.network.protocol() | {"extractor": self.name, "square": self.side}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """The column `features`."""
        del records
        return {"features": self.network(squares(pictures, self.side)).float()}


class ScorerExtractor:
    """Scores of pictures for their prompts."""

    is_per_prompt = False

    def __init__(self, scorer: PromptScorer) -> None:
        self.scorer, self.name = scorer, scorer.name

    def record(self) -> dict[str, Any]:
        return dict(self.scorer.description()) | {"extractor": self.name}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """The column `score`."""
        prompts = [record.prompt for record in records]
        if not any(prompts):
            raise UserError(f"{self.name} needs the prompts of the pictures: give --prompts FILE")
        # One tensor if possible: it is what users' functions take.
        is_even = len({picture.size for picture in pictures}) == 1
        images = one_size(pictures, self.name) if is_even else pictures
        return {"score": self.scorer(images, prompts).float().cpu()}


class DiversityExtractor:
    """Diversity of the pictures of one prompt over seeds: means over pairs, and the effective number of distinct pictures."""

    is_per_prompt = True

    def __init__(self, name: str, *, features: FeatureNetwork | None = None, lpips: LPIPS | None = None) -> None:
        self.name, self.features, self.lpips = name, features, lpips

    def record(self) -> dict[str, Any]:
        network = {} if self.features is None else self.features.protocol()
        return {"extractor": self.name, "lpips": None if self.lpips is None else self.lpips.name, **network}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`cosine_diversity` and `vendi` of features, `lpips_diversity` of LPIPS; one row per prompt."""
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


class PairExtractor:
    """Similarity of each picture to the teacher's of the same prompt and seed: PSNR, SSIM and, if given, LPIPS."""

    is_per_prompt = False

    def __init__(self, teacher: PictureStore, lpips: LPIPS | None = None) -> None:
        self.teacher, self.lpips = teacher, lpips
        self.name = "pair" if lpips is None else f"pair/{lpips.name.replace('/', '-')}"
        self.partners = teacher.records()

    def record(self) -> dict[str, Any]:
        digests = [record.digest for record in self.partners.values()]
        return {"extractor": self.name, "teacher": record_hash({"pictures": digests})}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """Columns `psnr`, `ssim` and `lpips`."""
        own = one_size(pictures, "a pair")
        others = one_size([self.teacher.open(self.partners[record.index]) for record in records], "a pair")
        if own.shape != others.shape:
            raise UserError(
                f"the teacher's pictures are {others.shape[3]} x {others.shape[2]}, not {own.shape[3]} x {own.shape[2]}: "
                "draw both at the same size"
            )
        columns = {"psnr": psnr(own, others), "ssim": ssim(own, others)}
        return columns if self.lpips is None else columns | {"lpips": self.lpips(own, others)}


def squares(pictures: Pictures, side: int | None) -> Pictures:
    """Centre squares of that side, resized with LANCZOS; None leaves the pictures unchanged."""
    return pictures if side is None else [square(picture, side) for picture in pictures]


Factory = Callable[[Protocol, torch.device], Extractor]


def _inception(variant: str) -> Factory:
    return lambda protocol, device: FeatureExtractor(InceptionFeatures.load(variant).to(device), side=protocol.square)


def _patch(protocol: Protocol, device: torch.device) -> Extractor:
    return FeatureExtractor(PatchFeatures(InceptionFeatures.load("clean").to(device)))


EXTRACTORS: dict[str, Factory] = {
    "pixels": lambda protocol, device: PixelExtractor(),
    "emoji-clip": lambda protocol, device: EmojiExtractor(),
    "emoji-coverage": lambda protocol, device: CoverageExtractor(),
    **{f"inception/{variant}": _inception(variant) for variant in VARIANTS},
    "inception/clean/patch-center299": _patch,
    "dinov2-large/pil": lambda protocol, device: FeatureExtractor(DinoFeatures.load().to(device)),
    "cmmd": lambda protocol, device: FeatureExtractor(CMMDFeatures.load().to(device)),
    "diversity/emoji-clip": lambda protocol, device: DiversityExtractor("diversity/emoji-clip", features=emoji_clip()),
    "diversity/lpips-vgg": lambda protocol, device: DiversityExtractor(
        "diversity/lpips-vgg", lpips=LPIPS.load("vgg").to(device)
    ),
    "diversity/dinov2-large": lambda protocol, device: DiversityExtractor(
        "diversity/dinov2-large", features=DinoFeatures.load().to(device)
    ),
}
"""Factories by variant."""


def open_extractor(variant: str, protocol: Protocol, device: torch.device) -> Extractor:
    """Load the extractor of a variant.

    Raises:
        UserError: the variant is unknown, or its weights cannot be found.
    """
    if variant in EXTRACTORS:
        return EXTRACTORS[variant](protocol, device)
    if variant not in SCORERS and variant not in ALIASES and ":" not in variant:
        raise UserError(
            f"unknown metric variant '{variant}'; known variants: {', '.join([*EXTRACTORS, *SCORERS])} and package.module:function"
        )
    scorer = load_scorer(variant)
    return ScorerExtractor(scorer.to(device) if isinstance(scorer, nn.Module) else scorer)
