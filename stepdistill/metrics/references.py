"""Means and covariances of features: accumulated and merged across processes, saved, and read from published files."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stepdistill.errors import UserError


@dataclass
class FeatureStats:
    """Count, sum and sum of outer products of features around a fixed shift, in float64.

    Sums around one shift add exactly, so a single `all_reduce` merges all ranks. A shift near the mean avoids the
    cancellation in `E[x x^T] - E[x] E[x]^T` when features lie far from the origin.

    >>> stats = FeatureStats.around(torch.tensor([10.0, 0.0]))
    >>> stats.update(torch.tensor([[9.0, 0.0], [11.0, 2.0]]))
    >>> stats.mean, stats.cov
    (tensor([10.,  1.], dtype=torch.float64), tensor([[2., 2.],
            [2., 2.]], dtype=torch.float64))
    """

    shift: Tensor
    total: Tensor
    """sum (x - shift), (d,)."""
    outer: Tensor
    """sum (x - shift)(x - shift)^T, (d, d)."""
    n: int = 0

    @classmethod
    def around(cls, shift: Tensor) -> FeatureStats:
        """Create empty statistics around `shift` (d,), ideally near the mean of the features."""
        shift = shift.detach().to(torch.float64)
        return cls(shift, torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift)))

    @classmethod
    def of(cls, features: Tensor) -> FeatureStats:
        """Compute the statistics of features (n, d) around their own mean."""
        stats = cls.around(features.to(torch.float64).mean(0))
        stats.update(features)
        return stats

    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, d)."""
        offsets = features.detach().to(self.shift) - self.shift
        self.n += len(offsets)
        self.total += offsets.sum(0)
        self.outer.addmm_(offsets.T, offsets)

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Return the statistics of both sets, around this shift. Neither operand changes."""
        move = other.shift - self.shift
        # sum (y + m)(y + m)^T = sum y y^T + (sum y) m^T + m (sum y)^T + n m m^T, with y = x - other.shift, m = move
        cross = torch.outer(other.total, move)
        moved = other.outer + cross + cross.T + other.n * torch.outer(move, move)
        total = self.total + other.total + other.n * move
        return FeatureStats(self.shift, total, self.outer + moved, self.n + other.n)

    def all_reduce(self) -> FeatureStats:
        """Return the statistics of all ranks' features; a collective call, also for ranks without features.

        Every rank moves to rank 0's shift first, so that one sum merges them.
        """
        if not dist.is_initialized():
            return self
        shift = self.shift.clone()
        dist.broadcast(shift, src=0)
        own = FeatureStats.around(shift).merge(self)
        packed = torch.cat([own.outer.flatten(), own.total, own.total.new_tensor([own.n])])
        dist.all_reduce(packed)
        d = len(shift)
        return FeatureStats(shift, packed[d * d : -1], packed[: d * d].view(d, d), int(packed[-1]))

    @property
    def mean(self) -> Tensor:
        """Mean (d,)."""
        return self.shift + self.total / self.n

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (d, d)."""
        return (self.outer - torch.outer(self.total, self.total) / self.n) / (self.n - 1)


@dataclass(frozen=True)
class ReferenceStats:
    """Mean and covariance of a reference set's features, with the protocol that produced them."""

    mean: Tensor
    """(d,), float64."""
    cov: Tensor
    """Unbiased covariance (d, d), float64."""
    n: int | None = None
    """Number of samples; None for published files, which do not record it."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """A feature network's `protocol()`, the data set, the crop. Empty for published files."""

    @classmethod
    def of(cls, stats: FeatureStats, protocol: Mapping[str, Any]) -> ReferenceStats:
        """Freeze accumulated statistics together with their protocol."""
        return cls(stats.mean.cpu(), stats.cov.cpu(), stats.n, dict(protocol))

    def save(self, path: str | Path) -> None:
        """Write `mu`, `sigma`, `n` and `protocol_json` as `.npz`, which EDM's and clean-fid's tools read too.

        Raises:
            UserError: the name does not end with `.npz`.
        """
        file = Path(path).expanduser()
        if file.suffix != ".npz":
            raise UserError(f"{file}: reference statistics are .npz files, so end the name with .npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            mu=self.mean.cpu().numpy(),
            sigma=self.cov.cpu().numpy(),
            n=np.array(-1 if self.n is None else self.n),
            protocol_json=np.array(json.dumps(self.protocol, sort_keys=True)),
        )

    @classmethod
    def load(cls, path: str | Path, *, metric: str = "fid") -> ReferenceStats:
        """Read a file written by `save`, an `.npz` of EDM or clean-fid (`mu`, `sigma`), or a `.pkl` of EDM2.

        Args:
            path: the file.
            metric: entry of a `.pkl`: `fid` or `fd_dinov2`.

        Raises:
            UserError: the file is missing or holds no statistics.
        """
        file = _existing(path)
        record = _read_pickle(file, metric) if file.suffix == ".pkl" else _read_npz(file)
        if "mu" not in record or "sigma" not in record:
            raise UserError(
                f"{file} holds {', '.join(sorted(record)) or 'nothing'}, not the mu and sigma of reference statistics"
            )
        mean, cov = (torch.from_numpy(np.asarray(record[name], dtype=np.float64)) for name in ("mu", "sigma"))
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise UserError(f"{file}: mu {tuple(mean.shape)} and sigma {tuple(cov.shape)} do not match")
        n = int(record["n"]) if "n" in record else -1
        protocol = json.loads(str(record["protocol_json"])) if "protocol_json" in record else {}
        return cls(mean, cov, None if n < 0 else n, protocol)

    def require(self, protocol: Mapping[str, Any]) -> None:
        """Check that every field named by both protocols agrees.

        Raises:
            UserError: a field differs.
        """
        for name, value in protocol.items():
            value = json.loads(json.dumps(value))  # tuples become lists, as in the stored protocol
            if name in self.protocol and self.protocol[name] != value:
                raise UserError(
                    f"the reference was computed with {name}={self.protocol[name]!r}, not {value!r}: the two are not "
                    "comparable; recompute the reference, or measure with its settings"
                )


def load_reference_features(path: str | Path) -> Tensor:
    """Read the features (n, d) that clean-fid publishes for KID (`feats` of an `.npz`).

    Raises:
        UserError: the file is missing or holds no `feats`.
    """
    file = _existing(path)
    record = _read_npz(file)
    if "feats" not in record:
        raise UserError(f"{file} holds {', '.join(sorted(record)) or 'nothing'}, not the feats of a KID reference")
    return torch.from_numpy(record["feats"])


def _existing(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"no reference at {file}: give an existing .npz or .pkl, or create one with ReferenceStats.save"
        )
    return file


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as .npz reference statistics: {error}") from error


def _read_pickle(file: Path, metric: str) -> dict[str, Any]:
    try:
        entries = _ArraysOnly(io.BytesIO(file.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{file} cannot be read as .pkl reference statistics: {error}") from error
    if not isinstance(entries, dict) or metric not in entries:
        known = ", ".join(map(str, entries)) if isinstance(entries, dict) else type(entries).__name__
        raise UserError(f"{file} has no statistics for {metric!r}; it has {known}")
    return entries[metric]


class _ArraysOnly(pickle.Unpickler):
    """Unpickle NumPy arrays and plain containers only, so that a downloaded file cannot run code."""

    _names = frozenset({"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"})
    _modules = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"})  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode") or (module in self._modules and name in self._names):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it needs {module}.{name}, and only arrays are allowed")
