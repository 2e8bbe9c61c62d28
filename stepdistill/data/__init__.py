"""Data: prompts, images and the embedded emoji problem."""
