"""Rewards by their name in a recipe, with gradients if the scorer is a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stepdistill.critics.config import RewardConfig
from stepdistill.data.emoji import EmojiWorld
from stepdistill.errors import UserError
from stepdistill.metrics.networks.clip import emoji_clip
from stepdistill.metrics.scorers.rewards import load_reward
from stepdistill.training.recipe import parse_recipe

PROMPTS = ["a", "b c"]


def test_emoji_clip_prefers_the_right_caption_and_has_a_gradient() -> None:
    images, captions = EmojiWorld().scenes(0, range(16))
    reward = load_reward("emoji_clip")
    images.requires_grad_()
    right = reward(images, captions)
    wrong = reward(images.detach(), captions[1:] + captions[:1])
    assert right.shape == (16,)
    assert (right > wrong).float().mean() > 0.7
    right.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_emoji_clip_is_the_cosine_of_its_model() -> None:
    images, network = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), emoji_clip()
    expected = torch.cosine_similarity(network(images), network.texts(["cat", "red heart"]))
    assert torch.allclose(load_reward("emoji_clip")(images, ["cat", "red heart"]), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["hps/v2.0", "hps/v2.1", "pickscore", "pickscore/cosine", "clip/vit-l-14-openai"])
def test_named_scorers_are_differentiable_rewards(clip_folder: Path, name: str) -> None:
    reward = load_reward({"name": name, "weights": str(clip_folder)})
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = reward(images, PROMPTS)
    values.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_a_step_along_the_gradient_raises_the_reward(clip_folder: Path) -> None:
    reward = load_reward(RewardConfig(name="pickscore", weights=str(clip_folder)))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = reward(images, PROMPTS)
    (direction,) = torch.autograd.grad(before.sum(), images)
    step = 0.5 * direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    assert (reward((images + step).detach(), PROMPTS) > before).all()


def test_precision_of_the_weights(clip_folder: Path) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    half = load_reward({"name": "hps/v2.1", "weights": str(clip_folder), "dtype": "bf16"})(images, PROMPTS)
    full = load_reward({"name": "hps/v2.1", "weights": str(clip_folder)})(images, PROMPTS)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, atol=3.0)


def test_a_command_ranks_without_a_gradient(tmp_path: Path) -> None:
    script = tmp_path / "length.py"
    script.write_text(
        "import json, sys\n"
        "rows = [json.loads(line) for line in open(sys.argv[1])]\n"
        "open(sys.argv[2], 'w').write(''.join(\n"
        "    json.dumps({'index': row['index'], 'score': len(row['prompt'])}) + '\\n' for row in rows))\n"
    )
    reward = load_reward({"name": "length", "command": [sys.executable, str(script)]})
    values = reward(torch.rand(2, 3, 4, 4).requires_grad_(), PROMPTS)
    assert values.tolist() == [1.0, 3.0]
    assert not values.requires_grad


def test_a_callable_is_named_by_its_module() -> None:
    reward = load_reward("torch:numel")
    assert reward is torch.numel


@pytest.mark.parametrize(
    "reward",
    ["picscore", "torch:no_such_thing", "no_such_module:reward", {"name": "emoji_clip", "weights": "x"}, {"nam": "x"},
     {"name": "hps/v2.1", "weights": "/no/such/file"}],
)  # fmt: skip
def test_unknown_rewards_say_what_to_write(reward: Any) -> None:
    with pytest.raises(UserError, match=r"^method\.reward"):
        load_reward(reward)


def recipe(reward: Any, method: str = "pso") -> Any:
    document = {"model": {"pretrained_model_name_or_path": "x"}, "method": {"name": method, "reward": reward}}
    return parse_recipe(document)


def test_recipes_name_rewards_in_either_form() -> None:
    """The short form stays short in the resolved recipe, so the hashes of older runs do not move."""
    assert yaml.safe_load(recipe("emoji_clip").dump())["method"]["reward"] == "emoji_clip"
    full = {"name": "pickscore", "weights": "w.safetensors"}
    for method in ("pso", "swiftbrush"):
        resolved = recipe(full, method)
        written = yaml.safe_load(resolved.dump())["method"]["reward"]
        assert full.items() <= written.items()
        assert resolved.distiller_config.reward == RewardConfig(**full)  # type: ignore[attr-defined]
        assert recipe(written, method).digest() == resolved.digest()


def test_a_wrong_key_of_a_reward_is_named() -> None:
    with pytest.raises(UserError, match=r"method\.reward\.wights: unknown key \(did you mean 'weights'\?\)"):
        recipe({"name": "pickscore", "wights": "x"})
    with pytest.raises(UserError, match=r"method\.reward\.name: this key is required"):
        recipe({"weights": "x"})
