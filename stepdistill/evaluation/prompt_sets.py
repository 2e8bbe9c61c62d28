"""Prompt sets: from the hub, from a local copy, or from the user's own file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stepdistill.assets import asset_path
from stepdistill.data.prompt_files import prompt_column, read_rows
from stepdistill.errors import UserError
from stepdistill.evaluation.protocols import Protocol

CATEGORY_COLUMNS = ("category", "style")


@dataclass(frozen=True)
class PromptSet:
    """Prompts in order, each with an id and, if the source has one, a category."""

    prompts: tuple[str, ...]
    ids: tuple[str, ...]
    categories: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, prompts: Sequence[str]) -> PromptSet:
        """Prompts numbered from zero."""
        ids = tuple(str(number) for number in range(len(prompts)))
        return cls(tuple(prompts), ids, (None,) * len(prompts))

    @property
    def digest(self) -> str:
        """Hash of the prompts in order.

        >>> PromptSet.of(["a", "b"]).digest == PromptSet.of(["b", "a"]).digest
        False
        """
        text = "\n".join(f"{len(prompt)}:{prompt}" for prompt in self.prompts)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def first(self, count: int | None) -> PromptSet:
        """The first `count`; None for all."""
        return PromptSet(self.prompts[:count], self.ids[:count], self.categories[:count])


def load_prompt_set(
    protocol: Protocol, source: str | None = None, *, column: str | None = None, limit: int | None = None
) -> PromptSet:
    """Load the prompts of a protocol.

    Args:
        protocol: names their source and number.
        source: the user's file, or a folder with the protocol's files; default: the protocol's own source.
        column: the column with the prompts.
        limit: use only the first prompts.

    Raises:
        UserError: they cannot be found; the message says what to give.
    """
    if source is None and protocol.is_embedded:
        found = _emoji_captions()
    else:
        found = _joined([_read(path, column) for path in _files(protocol, source)])
    available = len(found) if source is not None and limit is not None else min(protocol.num_prompts, len(found))
    if limit is not None and limit > available:
        raise UserError(f"--limit {limit}: there are only {available} prompts")
    return found.first(limit or available)


def _files(protocol: Protocol, source: str | None) -> list[Path]:
    hub, names = _hub_place(protocol)
    if source is None:
        if hub is None:
            raise UserError(
                f"the prompts of {protocol.name} are not on the hub; give --prompts FILE, such as captions_val2014.json of COCO "
                "or a .txt with one prompt per line"
            )
        return [_hub_file(hub, name, protocol.name) for name in names]
    path = Path(source).expanduser()
    if not path.is_dir():
        return [path]
    local = [next(iter(path.rglob(Path(name).name)), path / name) for name in names]
    missing = [each.name for each in local if not each.is_file()]
    if missing or not local:
        what = ", ".join(missing) or "files of the protocol"
        raise UserError(f"--prompts: the folder '{source}' has no {what}; give the file of the prompts")
    return local


def _hub_place(protocol: Protocol) -> tuple[str | None, list[str]]:
    """Repository and files of a protocol's prompts on the hub."""
    kind, _, rest = (protocol.prompts or "").partition(":")
    if kind != "hub":
        return None, []
    repository, _, names = rest.partition(":")
    return repository, names.split(",")


def _hub_file(repository: str, name: str, protocol: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the prompts of {protocol} cannot be downloaded ({repository}, {name}); give a copy of the file with --prompts FILE"
        ) from error


def _read(path: Path, column: str | None) -> PromptSet:
    rows = [(number, row) for number, row in enumerate(read_rows(path, asked_by="--prompts"))]
    kept = [(number, row) for number, row in rows if _text(row, path, column)]
    if not kept:
        raise UserError(f"--prompts: '{path}' contains no prompts; put one on each line")
    style = path.stem if path.parent.name == "benchmark" else None
    return PromptSet(
        tuple(_text(row, path, column) for _, row in kept),
        tuple(str(row.get("id", f"{style}/{number:05d}" if style else number)) for number, row in kept),
        tuple(_category(row) or style for _, row in kept),
    )


def _text(row: dict[str, Any], path: Path, column: str | None) -> str:
    return str(row[prompt_column(list(row), path, column)] or "").strip()


def _category(row: dict[str, Any]) -> str | None:
    by_lower = {str(name).lower(): value for name, value in row.items()}
    return next((str(by_lower[name]) for name in CATEGORY_COLUMNS if by_lower.get(name)), None)


def _joined(parts: Sequence[PromptSet]) -> PromptSet:
    return PromptSet(
        tuple(prompt for part in parts for prompt in part.prompts),
        tuple(each for part in parts for each in part.ids),
        tuple(each for part in parts for each in part.categories),
    )


def _emoji_captions() -> PromptSet:
    table = pq.read_table(asset_path("emoji/eval_captions.parquet"), columns=["caption"])
    return PromptSet.of(table["caption"].to_pylist())
