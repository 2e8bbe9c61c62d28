"""Writing an export folder so that a full disk or a failed gate costs nothing that was there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stepdistill.errors import UserError
from stepdistill.export.contract import CONTRACT_NAME
from stepdistill.export.gate import ExportError


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside the target, moved into it when the block ends well.

    After an `ExportError` it is kept as `<folder>.failed`; after any other exception nothing of it is left.

    Raises:
        UserError: it cannot be written; what the target held is untouched.
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
        raise ExportError(f"{error}; what was written is in '{failed}', '{folder}' is as it was") from None
    except (OSError, SafetensorError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        )
        raise UserError(
            f"cannot write the export '{folder}': {reason}; make room or choose a folder you may write to"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def install(partial: Path, folder: Path) -> None:
    """Move every file into the target, then remove what an earlier export wrote there and this one did not.

    Files that no export wrote are left alone.
    """
    earlier = files_of(folder)
    written = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
    for name in sorted(written, key=lambda name: name.name == CONTRACT_NAME):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    for name in earlier - {path.as_posix() for path in written}:
        (folder / name).unlink(missing_ok=True)


def files_of(folder: Path) -> set[str]:
    """Files that an earlier export wrote into the folder, as far as its contract can be read."""
    try:
        names = json.loads((folder / CONTRACT_NAME).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
