"""Every scorer by the name that its numbers carry. `docs/prompt_metrics.md` says what each may be compared with."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from transformers import BertTokenizer

from stepdistill.errors import UserError
from stepdistill.metrics.networks.extractors import ClipFeatures
from stepdistill.metrics.networks.transforms import PictureTransform
from stepdistill.metrics.networks.weights import WeightFile, pretrained, read_tensors, sha256, weights_file
from stepdistill.metrics.scorers.clip_sources import (
    Location,
    clip_features,
    clip_scorer,
    dmd2_clip_scorer,
    emoji_clip_scorer,
    hps_scorer,
    pick_scorer,
    reference_clip_scorer,
)
from stepdistill.metrics.scorers.external import CommandScorer, hpsv3_scorer
from stepdistill.metrics.scorers.image_reward import ImageRewardScorer
from stepdistill.metrics.scorers.prompt_scorers import (
    AestheticScorer,
    CallableScorer,
    PromptScorer,
    linear_head,
)

IMAGE_REWARD_SHA256 = "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"

AESTHETIC_HEAD = WeightFile(
    "sac+logos+ava1-l14-linearMSE.pth",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)


def image_reward_scorer(*, weights: Location = None, tokenizer: Location = None) -> ImageRewardScorer:
    """ImageReward-v1.0 (https://arxiv.org/abs/2304.05977).

    Args:
        weights: `ImageReward.pt`, or the folder that holds it.
        tokenizer: folder of the tokenizer of bert-base-uncased.
    """
    file = weights_file(
        weights, repo="THUDM/ImageReward", filename="ImageReward.pt", sha256=IMAGE_REWARD_SHA256
    )
    is_published = file.name == "ImageReward.pt"
    model = f"ImageReward@{IMAGE_REWARD_SHA256[:8]}" if is_published else f"{file.name}@{sha256(file)[:8]}"
    words = pretrained(BertTokenizer, "google-bert/bert-base-uncased", tokenizer)
    name = "image_reward" if is_published else f"image_reward:{model}"
    return ImageRewardScorer.from_weights(read_tensors(file), words, name=name, model=model)


def aesthetic_scorer(
    *, weights: Location = None, backbone: Location = None, tokenizer: Location = None
) -> AestheticScorer:
    """The LAION aesthetic score: the linear head `sac+logos+ava1-l14` on OpenAI's ViT-L/14.

    Args:
        weights: the head.
        backbone: `model.safetensors` of openai/clip-vit-large-patch14, or its folder.
        tokenizer: folder of the tokenizer, which is not used but belongs to the model.

    Raises:
        UserError: the backbone is another model: the head reads plausible noise from any other.
    """
    features = clip_features("vit-l-14-openai", weights=backbone, tokenizer=tokenizer)
    if not isinstance(features, ClipFeatures) or not features.name.startswith("vit-l-14-openai@"):
        raise UserError(
            f"the aesthetic score reads OpenAI's ViT-L/14 alone, and {features.name} is not its model.safetensors; "
            "fetch it from openai/clip-vit-large-patch14"
        )
    head = linear_head([features.num_features, 1024, 128, 64, 16, 1])
    state = read_tensors(AESTHETIC_HEAD.locate(weights))
    try:
        head.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    except RuntimeError as error:
        raise UserError(
            f"these are not the weights of the aesthetic head: {str(error).splitlines()[-1]}"
        ) from error
    return AestheticScorer(features, head, name="aesthetic", transform=PictureTransform(features.image_size))


SCORERS: Mapping[str, Callable[..., PromptScorer]] = {
    "emoji_clip": emoji_clip_scorer,
    "clip/vit-b-32-openai": partial(clip_scorer, "vit-b-32-openai"),
    "clip/vit-b-32-openai-clipscore": reference_clip_scorer,
    "clip/vit-l-14-openai": partial(clip_scorer, "vit-l-14-openai"),
    "clip/vit-h-14-laion2b": partial(clip_scorer, "vit-h-14-laion2b"),
    "clip/vit-g-14-laion2b": partial(clip_scorer, "vit-g-14-laion2b"),
    "clip/vit-g-14-laion2b-dmd2": dmd2_clip_scorer,
    "hps/v2.0": partial(hps_scorer, "v2.0"),
    "hps/v2.1": partial(hps_scorer, "v2.1"),
    "hps/v3": hpsv3_scorer,
    "pickscore/logit": partial(pick_scorer, "logit"),
    "pickscore/cosine": partial(pick_scorer, "cosine"),
    "image_reward": image_reward_scorer,
    "aesthetic": aesthetic_scorer,
}
"""What makes each scorer; keyword arguments are its options."""

ALIASES = {
    "pickscore": "pickscore/logit",
    "hpsv2": "hps/v2.0",
    "hpsv2.1": "hps/v2.1",
    "hpsv3": "hps/v3",
    "imagereward": "image_reward",
}


def load_scorer(scorer: str | Callable[..., Any], **options: Any) -> PromptScorer:
    """A scorer by its name in `SCORERS`, by `package.module:function`, by a command, or of a function.

    Args:
        scorer: the name, or the function itself. With `command=...` any name will do.
        options: of the named scorer: `weights`, `tokenizer`, `command` and so on; those that are None are left out.

    Raises:
        UserError: there is no such scorer, or it has no such option.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if callable(scorer):
        return CallableScorer(
            scorer, name=f"{scorer.__module__}:{getattr(scorer, '__qualname__', 'function')}"
        )
    name = ALIASES.get(scorer, scorer)
    if name in SCORERS:
        _refuse_unknown(name, options)
        return SCORERS[name](**options)
    if options.keys() == {"command"}:
        return CommandScorer(options["command"], name=name)
    function = named_function(name)
    if options:
        raise UserError(f"'{name}' is a function and has no option '{next(iter(options))}'")
    return CallableScorer(function, name=name)


def named_function(name: str) -> Callable[..., Any]:
    """What `package.module:name` says.

    Raises:
        UserError: it says nothing, or it cannot be imported.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        near = difflib.get_close_matches(name, [*SCORERS, *ALIASES], n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(
            f"unknown scorer '{name}'{hint}; use one of {', '.join(SCORERS)}, or package.module:function with "
            "function(images, prompts) -> one number per image"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the scorer '{name}' cannot be imported: {error}") from error


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    known = [
        key
        for key, value in inspect.signature(SCORERS[name]).parameters.items()
        if value.kind is value.KEYWORD_ONLY
    ]
    for key in options:
        if key not in known:
            raise UserError(f"{name} has no option '{key}'; it has {', '.join(known) or 'none'}")
