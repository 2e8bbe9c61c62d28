"""The LAION aesthetic score, https://github.com/christophschuhmann/improved-aesthetic-predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from stepdistill.errors import UserError
from stepdistill.metrics.networks.clip import ClipFeatures
from stepdistill.metrics.networks.clip_checkpoints import load_clip
from stepdistill.metrics.networks.weights import Location, WeightFile, read_tensors
from stepdistill.metrics.preprocess import Preprocess
from stepdistill.metrics.scorers.base import NetworkScorer, linear_head

AESTHETIC_HEAD = WeightFile(
    "sac+logos+ava1-l14-linearMSE.pth",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
)


class AestheticScorer(NetworkScorer):
    """A linear head on unit-length CLIP image embeddings, about 1 to 10. Prompts are ignored.

    Args:
        features: the CLIP model the head was trained on; any other gives plausible noise.
        head: embedding (B, d) to score (B, 1).
        name: label of the numbers.
        preprocess: replaces the model's own.
    """

    def __init__(
        self, features: ClipFeatures, head: nn.Module, *, name: str, preprocess: Preprocess | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.head = head.eval().requires_grad_(False)
        self.name = name
        self.preprocess = preprocess or features.preprocess

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        del prompts
        embedding = normalize(self.features.embed(pixels), dim=1)
        return self.head(embedding.to(next(self.head.parameters()).dtype)).squeeze(1)

    def description(self) -> dict[str, Any]:
        return super().description() | {"model": self.features.name}


def aesthetic_scorer(
    *, weights: Location = None, backbone: Location = None, tokenizer: Location = None
) -> AestheticScorer:
    """Load the head `sac+logos+ava1-l14` on OpenAI's ViT-L/14.

    Args:
        weights: the head.
        backbone: `model.safetensors` of openai/clip-vit-large-patch14, or its folder.
        tokenizer: folder of the model's tokenizer, which is loaded but not used.

    Raises:
        UserError: the backbone is another model, or the weights are not those of the head.
    """
    features = load_clip("vit-l-14-openai", weights=backbone, tokenizer=tokenizer)
    if not isinstance(features, ClipFeatures) or not features.name.startswith("vit-l-14-openai@"):
        raise UserError(
            f"the aesthetic score needs OpenAI's ViT-L/14, and {features.name} is not its model.safetensors; "
            "get it from openai/clip-vit-large-patch14"
        )
    head = linear_head([features.num_features, 1024, 128, 64, 16, 1])
    state = read_tensors(AESTHETIC_HEAD.locate(weights))
    try:
        head.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"these are not the weights of the aesthetic head: {reason}") from error
    return AestheticScorer(features, head, name="aesthetic", preprocess=Preprocess(features.image_size))
