"""Critics: the fake score, the discriminator heads and the reward protocol."""
