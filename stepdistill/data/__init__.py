"""Data: prompts, images, caches, teacher trajectories and the embedded emoji problem."""
