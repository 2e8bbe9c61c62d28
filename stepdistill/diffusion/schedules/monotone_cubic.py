"""Monotone C1 cubic interpolation of values at 0, 1, 2, ..., with its exact derivative and inverse."""

from __future__ import annotations

import torch
from torch import Tensor

_BISECTIONS = 52  # halves a unit cell down to the float64 epsilon, 2^-52


class MonotoneCubic:
    """Cubic Hermite interpolant with harmonic-mean slopes (Fritsch & Butland 1984, doi:10.1137/0905021).

    Strictly monotone like its values, hence invertible. The end slopes are one-sided, of second order.
    Evaluated in float64 (float32 on devices without it), on the device of the argument.

    >>> curve = MonotoneCubic(torch.tensor([0.0, -1.0, -4.0, -9.0]))
    >>> curve(torch.tensor([1.0, 3.0])), curve.inverse(torch.tensor([-4.0]))
    (tensor([-1., -9.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    def __init__(self, values: Tensor) -> None:
        values = values.detach().to("cpu", torch.float64)
        secants = values.diff()
        if len(values) < 3 or not bool((secants.sign() == secants[0].sign()).all()) or secants[0] == 0:
            raise ValueError("a monotone cubic needs at least three strictly monotone values")
        # Fritsch & Butland with unit spacing: m_i = 2 d_{i-1} d_i / (d_{i-1} + d_i) <= 2 min(d_{i-1}, d_i),
        # which lies inside the monotonicity region m <= 3 d of Fritsch & Carlson.
        inner = 2 * secants[:-1] * secants[1:] / (secants[:-1] + secants[1:])
        # m_0 = (3 d_0 - m_1) / 2 makes the second derivative at the end zero.
        first = 1.5 * secants[:1] - 0.5 * inner[:1]
        last = 1.5 * secants[-1:] - 0.5 * inner[-1:]
        self.values = values
        self.slopes = torch.cat([first, inner, last])
        self._cache: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __call__(self, x: Tensor) -> Tensor:
        """Interpolate; constant outside [0, len - 1]."""
        u, y0, a, b, c = self._segment(x)
        return y0 + u * (a + u * (b + u * c))

    def derivative(self, x: Tensor) -> Tensor:
        """Return the exact derivative of the interpolant."""
        u, _, a, b, c = self._segment(x)
        return a + u * (2 * b + u * 3 * c)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x with curve(x) = y, without gradient; values out of range give the nearer end."""
        values, _ = self._table(y.device)
        y = y.detach().to(values.dtype)
        sign = (self.values[1] - self.values[0]).sign().item()
        y = y.clamp(values.min(), values.max())
        cell = torch.searchsorted(sign * values, (sign * y).contiguous()).clamp(1, len(values) - 1) - 1
        lo, hi = cell.to(values.dtype), cell.to(values.dtype) + 1
        for _ in range(_BISECTIONS):
            middle = (lo + hi) / 2
            below = sign * self(middle) < sign * y
            lo, hi = torch.where(below, middle, lo), torch.where(below, hi, middle)
        # searchsorted puts a knot into the cell that it closes, so the upper bound is exact there.
        return torch.where(y == values[cell], cell.to(values.dtype), hi)

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._cache:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._cache[device] = self.values.to(device, dtype), self.slopes.to(device, dtype)
        return self._cache[device]

    def _segment(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the local coordinate u and (y0, a, b, c) of y = y0 + u (a + u (b + u c)) on the cell of x."""
        values, slopes = self._table(x.device)
        x = x.to(values.dtype).clamp(0, len(values) - 1)
        k = x.detach().floor().clamp(max=len(values) - 2).long()
        y0, y1, m0, m1 = values[k], values[k + 1], slopes[k], slopes[k + 1]
        rise = y1 - y0
        return x - k, y0, m0, 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise
