"""Training: everything a method does not have to know (recipe, loop, checkpoints, tracking)."""
