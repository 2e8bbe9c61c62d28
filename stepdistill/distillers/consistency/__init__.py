"""Methods that let every point of a trajectory agree on where it ends."""
