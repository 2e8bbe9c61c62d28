"""A minimal CLIP with open_clip's parameter names: the reference for weight conversions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = {"text": 24, "visual": 32}
HEADS = {"text": 3, "visual": 2}
LAYERS = {"text": 3, "visual": 2}
PATCH, GRID, DIM = 4, 3, 20
VOCABULARY, LENGTH = 190, 16
END = VOCABULARY - 1


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """Return a random state dict with open_clip's names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, around: float = 0.0) -> Tensor:
        return around + 0.3 * torch.randn(*shape, generator=generator)

    state = {
        "positional_embedding": draw(LENGTH, WIDTH["text"]),
        "text_projection": draw(WIDTH["text"], DIM),
        "logit_scale": torch.tensor(4.0),
        "token_embedding.weight": draw(VOCABULARY, WIDTH["text"]),
        "visual.class_embedding": draw(WIDTH["visual"]),
        "visual.positional_embedding": draw(GRID**2 + 1, WIDTH["visual"]),
        "visual.proj": draw(WIDTH["visual"], DIM),
        "visual.conv1.weight": draw(WIDTH["visual"], 3, PATCH, PATCH),
    }
    norms = {"ln_final": WIDTH["text"], "visual.ln_pre": WIDTH["visual"], "visual.ln_post": WIDTH["visual"]}
    for prefix, width, layers in (("", WIDTH["text"], LAYERS["text"]), ("visual.", WIDTH["visual"], LAYERS["visual"])):
        for i in range(layers):
            block = f"{prefix}transformer.resblocks.{i}"
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            for name, rows, columns in (
                ("attn.in_proj_", 3 * width, width), ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width), ("mlp.c_proj.", width, 4 * width),
            ):  # fmt: skip
                state |= {
                    f"{block}.{name}weight": draw(rows, columns) / columns**0.5,
                    f"{block}.{name}bias": draw(rows),
                }
    for name, width in norms.items():
        state |= {f"{name}.weight": draw(width, around=1.0), f"{name}.bias": draw(width)}
    return state


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Apply the layer norm of this name."""
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def transformer(x: Tensor, state: dict[str, Tensor], prefix: str, *, quick: bool) -> Tensor:
    """Apply the pre-norm blocks; attention of the text tower (prefix '') is causal."""
    tower = "visual" if prefix else "text"
    for i in range(LAYERS[tower]):
        start = f"{prefix}transformer.resblocks.{i}."
        block = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        qkv = F.linear(norm(x, block, "ln_1"), block["attn.in_proj_weight"], block["attn.in_proj_bias"])
        q, k, v = (part.unflatten(-1, (HEADS[tower], -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=tower == "text").transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, block["attn.out_proj.weight"], block["attn.out_proj.bias"])
        inner = F.linear(norm(x, block, "ln_2"), block["mlp.c_fc.weight"], block["mlp.c_fc.bias"])
        inner = inner * torch.sigmoid(1.702 * inner) if quick else F.gelu(inner)
        x = x + F.linear(inner, block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
    return x


def encode_image(pixels: Tensor, state: dict[str, Tensor], *, quick: bool = False) -> Tensor:
    """Return image embeddings (B, DIM), not normalised."""
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    x = transformer(norm(x, state, "visual.ln_pre"), state, "visual.", quick=quick)
    return norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"]


def encode_text(tokens: Tensor, state: dict[str, Tensor], *, quick: bool = False) -> Tensor:
    """Return text embeddings (B, DIM) at the end token, which has the highest id."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    x = norm(transformer(x, state, "", quick=quick), state, "ln_final")
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ state["text_projection"]
