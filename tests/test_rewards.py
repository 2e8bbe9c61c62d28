"""Rewards: the embedded one prefers the right picture, follows gradients, and names resolve."""

from __future__ import annotations

import pytest
import torch

from stepdistill.data.emoji import EmojiWorld
from stepdistill.errors import UserError
from stepdistill.rewards import load_reward


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


def test_a_callable_is_named_by_its_module() -> None:
    reward = load_reward("torch:numel")
    assert reward is torch.numel


@pytest.mark.parametrize("name", ["pickscore", "torch:no_such_thing", "no_such_module:reward"])
def test_unknown_rewards_say_what_to_write(name: str) -> None:
    with pytest.raises(UserError, match=r"method\.reward"):
        load_reward(name)
