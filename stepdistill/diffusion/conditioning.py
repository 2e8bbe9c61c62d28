"""Conditioning inputs of a denoiser: text tokens, pooled embeddings, size conditioning, class labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

Rows = int | slice | Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A batch of named tensors, batch dimension first.

    >>> cond = Conditioning({"tokens": torch.zeros(4, 7, 8), "pooled": torch.zeros(4, 8)})
    >>> len(cond), cond["tokens"].shape, len(cond[1:3]), len(Conditioning.cat([cond, cond]))
    (4, torch.Size([4, 7, 8]), 2, 8)
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {name: tensor.shape[0] for name, tensor in self.tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"a Conditioning needs at least one tensor and one common batch size, got {sizes}")

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: Rows) -> Conditioning: ...
    def __getitem__(self, key: str | Rows) -> Tensor | Conditioning:
        """Return the tensor of a name, or the rows of a slice, index tensor, list or single index."""
        if isinstance(key, str):
            return self.tensors[key]
        rows = [key] if isinstance(key, int) else key
        return Conditioning({name: tensor[rows] for name, tensor in self.tensors.items()})

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Move to a device; `dtype` applies to floating-point tensors only, so labels stay integers."""
        return Conditioning(
            {
                name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
                for name, tensor in self.tensors.items()
            }
        )

    def expand(self, n: int) -> Conditioning:
        """Expand a single row to n rows without a copy; n rows are returned as is."""
        if len(self) not in (1, n):
            raise ValueError(f"only a single row can be expanded to {n} rows, got {len(self)}")
        return Conditioning({name: t.expand(n, *t.shape[1:]) for name, t in self.tensors.items()})

    def with_guidance_scale(self, scale: Tensor) -> Conditioning:
        """Add the (B,) guidance scale that networks with a guidance embedding read."""
        return Conditioning({**self.tensors, "guidance_scale": scale})

    @staticmethod
    def where(is_first: Tensor, first: Conditioning, second: Conditioning) -> Conditioning:
        """Select the rows of `first` where the (B,) mask is True, else those of `second`; names must agree.

        >>> a, b = Conditioning({"x": torch.ones(2, 1)}), Conditioning({"x": torch.zeros(2, 1)})
        >>> Conditioning.where(torch.tensor([True, False]), a, b)["x"].flatten()
        tensor([1., 0.])
        """
        masks = {name: is_first.reshape(-1, *[1] * (second[name].ndim - 1)) for name in second}
        return Conditioning({name: torch.where(masks[name], first[name], second[name]) for name in second.tensors})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate the rows of all parts, in order; names must agree."""
        names = set(parts[0].tensors)
        if any(set(part.tensors) != names for part in parts):
            raise ValueError(f"cannot concatenate different names: {[sorted(p.tensors) for p in parts]}")
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})
