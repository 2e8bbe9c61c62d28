"""A tiny world of a few glyphs."""

from __future__ import annotations

import copy

import pytest

from stepdistill.data.emoji import EmojiWorld


@pytest.fixture(scope="session")
def whole_world() -> EmojiWorld:
    return EmojiWorld()


@pytest.fixture(scope="session")
def world(whole_world: EmojiWorld) -> EmojiWorld:
    """Every twentieth glyph."""
    small, kept = copy.copy(whole_world), slice(None, None, 20)
    small.glyphs = whole_world.glyphs[kept].clone()
    small.names, small.looks = whole_world.names[kept], whole_world.looks[kept]
    return small
