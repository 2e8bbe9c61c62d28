"""Transactional export folders: a full disk or a failed gate leaves the target untouched."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stepdistill.errors import ExportError, UserError
from stepdistill.export.contract import CONTRACT_NAME


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Context manager for a temporary folder beside the target, installed into it on success.

    An `ExportError` keeps it as `<folder>.failed`; any other exception removes it.

    Raises:
        UserError: the folder cannot be written; the target is untouched.
    """
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        yield partial
        install(partial, folder)
    except ExportError as error:
        failed = folder.with_name(f"{folder.name}.failed")
        shutil.rmtree(failed, ignore_errors=True)
        if partial is not None:
            partial.rename(failed)
        raise ExportError(f"{error}; the files are kept in '{failed}', '{folder}' is unchanged") from None
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"cannot write the export '{folder}': {reason}; free some space or choose a writable folder"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def install(partial: Path, folder: Path) -> None:
    """Move all files into the target, then remove stale files of an earlier export.

    Files that no export has written stay. The contract moves last, so an interrupted installation keeps the old one.
    """
    earlier = files_of(folder)
    written = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
    for name in sorted(written, key=lambda name: name.name == CONTRACT_NAME):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    for name in earlier - {path.as_posix() for path in written}:
        (folder / name).unlink(missing_ok=True)


def files_of(folder: Path) -> set[str]:
    """Return the files listed in the folder's contract; empty if that cannot be read."""
    try:
        names = json.loads((folder / CONTRACT_NAME).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
