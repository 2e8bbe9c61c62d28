"""Literal types of recipe options, importable without torch."""

from __future__ import annotations

from typing import Literal

Differentiation = Literal["jvp", "semi", "finite", "backward"]
"""jvp: forward-mode AD. semi: forward-mode in x, central difference in t. finite: central difference along the
direction. backward: one-sided difference from x - h dx to x."""

Solver = Literal["ddim", "euler", "heun"]
"""Solver of the probability-flow ODE."""

Kernel = Literal["renoise", "ancestral"]
"""Transition of a stochastic few-step sampler: x0 plus fresh noise (LCM), or Euler ancestral."""

Reduction = Literal["mean", "sum"]
"""Over the D elements of a sample. "sum" is the log density; "mean" divides it by D, as released code does."""
