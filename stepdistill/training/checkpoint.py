"""Checkpoints: safetensors for tensors, JSON for the rest. A crash at any moment leaves the previous checkpoint intact.

A checkpoint is a folder `checkpoints/step_N`. It is written under a temporary name and renamed when complete; then the file
`checkpoints/latest` is pointed at it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepdistill.errors import UserError


def save_checkpoint(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int | None = None,
) -> Path:
    """Write `checkpoints/step_N`, point `latest` at it, and delete all but the newest `keep`.

    Raises:
        UserError: the disk is full or not writable. Earlier checkpoints are untouched.
    """
    root = run_dir / "checkpoints"
    final, draft = root / f"step_{step}", root / f".step_{step}.partial"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, group in tensors.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in group.items()}, draft / f"{name}.safetensors"
            )
        (draft / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
        pointer = root / ".latest.partial"
        pointer.write_text(final.name)
        os.replace(pointer, root / "latest")
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"cannot write the checkpoint {final}: {error.strerror or error}; free space or set train.output_dir to a writable "
            "folder, then run the command again (earlier checkpoints are kept)"
        ) from error
    if keep is not None:
        prune(root, keep)
    return final


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints below `root`."""
    folders = sorted(root.glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))
    for folder in folders[: max(len(folders) - max(keep, 1), 0)]:
        shutil.rmtree(folder)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the folder that `checkpoints/latest` names, or None before the first checkpoint."""
    pointer = run_dir / "checkpoints" / "latest"
    if not pointer.exists():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    return folder if folder.is_dir() else None


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Load the tensors by group, and the state.

    Raises:
        UserError: the folder is not a readable checkpoint.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    except Exception as error:
        raise UserError(
            f"cannot read the checkpoint {folder}: {error}; delete the folder to resume from an earlier one, "
            "or set train.resume_from_checkpoint to another"
        ) from error
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimiser's state to tensors named `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in state.items()
        for name, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
