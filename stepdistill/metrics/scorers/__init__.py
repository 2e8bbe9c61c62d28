"""Scorers of an image and its prompt: CLIP score, HPS, PickScore, ImageReward, aesthetic score, and external programs."""
