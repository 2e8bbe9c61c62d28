"""Feature networks with the published preprocessing and weights."""
