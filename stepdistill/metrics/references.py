"""Statistics of reference sets on disk: ours with the protocol inside, and those that EDM, EDM2 and clean-fid publish."""

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
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.metrics.distances import FeatureStats


@dataclass(frozen=True)
class ReferenceStats:
    """Mean and covariance of the features of one side, fixed."""

    mean: Tensor
    """(d,), float64."""
    cov: Tensor
    """Unbiased covariance (d, d), float64."""
    n: int | None = None
    """Samples behind them; published files do not say."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """What they depend on: a feature network's `protocol()`, the data set, the crop. Empty for published files."""

    @classmethod
    def of(cls, stats: FeatureStats, protocol: Mapping[str, Any]) -> ReferenceStats:
        """What was accumulated, with its protocol."""
        return cls(stats.mean.cpu(), stats.cov.cpu(), stats.n, dict(protocol))

    def save(self, path: str | Path) -> None:
        """Write `mu`, `sigma`, `n` and `protocol_json` as an `.npz`, which EDM's and clean-fid's tools read too."""
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
        """Read our own `.npz`, the `.npz` of EDM or clean-fid (`mu`, `sigma`), or a `.pkl` of EDM2.

        Args:
            path: the file.
            metric: which entry of a `.pkl` to take: `fid` or `fd_dinov2`.

        Raises:
            UserError: no such file, or no statistics in it.
        """
        file = _existing(path)
        record = _read_pickle(file, metric) if file.suffix == ".pkl" else _read_npz(file)
        if "mu" not in record or "sigma" not in record:
            raise UserError(
                f"{file} holds {', '.join(sorted(record)) or 'nothing'}, not the mu and sigma of reference statistics"
            )
        mean, cov = (torch.from_numpy(np.asarray(record[name], dtype=np.float64)) for name in ("mu", "sigma"))
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise UserError(
                f"{file}: mu {tuple(mean.shape)} and sigma {tuple(cov.shape)} do not fit together"
            )
        n = int(record["n"]) if "n" in record else -1
        protocol = json.loads(str(record["protocol_json"])) if "protocol_json" in record else {}
        return cls(mean, cov, None if n < 0 else n, protocol)

    def require(self, protocol: Mapping[str, Any]) -> None:
        """Refuse another protocol: every field that both sides name must agree.

        Raises:
            UserError: one does not.
        """
        for name, value in protocol.items():
            # Through JSON and back, as the stored one went: tuples become lists.
            value = json.loads(json.dumps(value))
            if name in self.protocol and self.protocol[name] != value:
                raise UserError(
                    f"the reference was taken with {name}={self.protocol[name]!r}, not {value!r}: the two do not "
                    "compare; recompute the reference, or measure as it was"
                )


def load_reference_features(path: str | Path) -> Tensor:
    """Features (n, d) of a reference set, as clean-fid publishes them for KID (`feats` of an `.npz`)."""
    file = _existing(path)
    record = _read_npz(file)
    if "feats" not in record:
        raise UserError(
            f"{file} holds {', '.join(sorted(record)) or 'nothing'}, not the feats of a KID reference"
        )
    return torch.from_numpy(record["feats"])


def _existing(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"no reference at {file}: give an .npz or .pkl that exists, or make one with ReferenceStats.save"
        )
    return file


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"{file} is no .npz of reference statistics: {error}") from error


def _read_pickle(file: Path, metric: str) -> dict[str, Any]:
    try:
        entries = _ArraysOnly(io.BytesIO(file.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{file} is no .pkl of reference statistics: {error}") from error
    if not isinstance(entries, dict) or metric not in entries:
        known = ", ".join(map(str, entries)) if isinstance(entries, dict) else type(entries).__name__
        raise UserError(f"{file} has no statistics for {metric!r}; it has {known}")
    return entries[metric]


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; a pickle that asks for anything else is refused, so none can run code."""

    _names = frozenset({"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"})
    _modules = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"})  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode") or (module in self._modules and name in self._names):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are read")
