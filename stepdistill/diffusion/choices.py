"""Named choices that recipes make, importable without torch."""

from __future__ import annotations

from typing import Literal

Differentiation = Literal["jvp", "semi", "finite", "backward"]
"""Derivative along a direction. jvp: forward mode. semi: forward mode in x, central difference in t. finite: central
difference. backward: difference against the direction, from x - h dx to x."""

Solver = Literal["ddim", "euler", "heun"]
"""Solver of the probability-flow ODE."""

Kernel = Literal["renoise", "ancestral"]
"""Transition of a stochastic few-step sampler: x0 plus fresh noise (LCM), or Euler-ancestral."""

Reduction = Literal["mean", "sum"]
"""Over the elements of a sample. The sum is the log density; the mean, D times smaller, is what released code calls so."""
