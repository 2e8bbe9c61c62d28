"""Columns of what an extractor computes from pictures: one parquet file per extractor; an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from stepdistill.errors import UserError
from stepdistill.evaluation.drawing import Progress
from stepdistill.evaluation.generation import batches
from stepdistill.evaluation.picture_store import PARTS, PictureRecord
from stepdistill.evaluation.processes import ProcessGroup

_EXTRACTOR = b"stepdistill.extractor"


class Extractor(Protocol):
    """Computes columns from pictures: a feature network, a scorer, or the judge of the embedded problem.

    Attributes:
        name: the variant, which labels the numbers and names the file.
        is_per_prompt: whether one row covers all pictures of a prompt instead of one picture.
    """

    name: str
    is_per_prompt: bool

    def record(self) -> dict[str, Any]:
        """Everything the columns depend on, JSON-serialisable: columns of another record are recomputed."""
        ...

    def __call__(self, pictures: Sequence[Image.Image], records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """Columns of shape (rows,) or (rows, d) for pictures and their manifest records."""
        ...


@dataclass(frozen=True)
class Columns:
    """What an extractor computed from all pictures, in their order."""

    values: Mapping[str, Tensor]
    prompt_index: Tensor
    """The prompt's number for each row."""
    categories: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.prompt_index)


class ColumnTable:
    """The columns of one extractor for one folder of pictures: `folder/scores/<extractor>.parquet`.

    Args:
        folder: the output folder; parts are written to `folder/.parts`.
        extractor: its name and record are stored with the columns.
        elsewhere: another output folder whose columns are reused for equal pictures.
    """

    def __init__(self, folder: Path, extractor: Extractor, elsewhere: Path | None = None) -> None:
        slug = column_file(extractor.name)
        self.path = folder / "scores" / slug
        self.parts = folder / PARTS / "scores" / slug.removesuffix(".parquet")
        self.elsewhere = [] if elsewhere is None else [elsewhere / "scores" / slug]
        self.extractor = extractor
        self.metadata = {_EXTRACTOR: json.dumps(extractor.record(), sort_keys=True).encode()}

    def missing(self, records: Sequence[PictureRecord]) -> list[list[PictureRecord]]:
        """The rows that have no columns yet, each with its pictures."""
        known = {address for table in self._tables() for address in table["picture"].to_pylist()}
        return [row for row in self._rows(records) if _address(row) not in known]

    def compute(
        self,
        records: Sequence[PictureRecord],
        load: Callable[[PictureRecord], Image.Image],
        *,
        batch_size: int,
        group: ProcessGroup,
        progress: Progress | None = None,
    ) -> None:
        """Compute the missing columns; blocks are shared between processes.

        A block with a missing row is computed as a whole.
        """
        missing = {_address(row) for row in self.missing(records)}
        rows = self._rows(records)
        per_row = max(len(row) for row in rows)
        blocks = [rows[block] for block in batches(len(rows), max(batch_size // per_row, 1))]
        blocks = [block for block in blocks if any(_address(row) in missing for row in block)]
        group.barrier()  # Every process must list the missing blocks before the first one is written.
        own = group.share(blocks)
        for number, block in enumerate(own, start=1):
            flat = [record for row in block for record in row]
            with torch.no_grad():
                computed = self.extractor([load(record) for record in flat], flat)
            self._write(self.parts / f"{block[0][0].index:06d}.parquet", _table(block, computed))
            if progress is not None:
                progress(self.extractor.name, number, len(own))
        group.barrier()

    def merge(self, records: Sequence[PictureRecord]) -> None:
        """Join the parts into one file with a row for each picture (or prompt) of the manifest, in order."""
        table = self._joined()
        places = {address: place for place, address in enumerate(table["picture"].to_pylist())}
        rows = [row for row in self._rows(records) if _address(row) in places]
        table = table.take([places[_address(row)] for row in rows])
        # Equal pictures share an address, so the numbers are set again.
        table = table.set_column(0, "index", pa.array([row[0].index for row in rows]))
        table = table.set_column(1, "prompt_index", pa.array([row[0].prompt_index for row in rows]))
        self._write(self.path, table)
        shutil.rmtree(self.parts, ignore_errors=True)

    def read(self, records: Sequence[PictureRecord]) -> Columns:
        """The columns of these pictures."""
        table = self._joined()
        places = {address: place for place, address in enumerate(table["picture"].to_pylist())}
        rows = self._rows(records)
        table = table.take([places[_address(row)] for row in rows])
        names = [name for name in table.column_names if name not in ("index", "prompt_index", "picture")]
        return Columns(
            {name: _tensor(table[name]) for name in names},
            torch.tensor([row[0].prompt_index for row in rows]),
            tuple(row[0].category for row in rows),
        )

    def _rows(self, records: Sequence[PictureRecord]) -> list[list[PictureRecord]]:
        return rows_of(records, per_prompt=self.extractor.is_per_prompt)

    def _tables(self) -> list[pa.Table]:
        """The tables computed by this very extractor, parts last."""
        files = [*self.elsewhere, self.path, *sorted(self.parts.glob("*.parquet"))]
        tables = [pq.read_table(path) for path in files if path.is_file()]
        return [
            table
            for table in tables
            if len(table) and (table.schema.metadata or {}).get(_EXTRACTOR) == self.metadata[_EXTRACTOR]
        ]

    def _joined(self) -> pa.Table:
        return pa.concat_tables(self._tables()).combine_chunks()

    def _write(self, path: Path, table: pa.Table) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.partial")
        pq.write_table(table.replace_schema_metadata(self.metadata), draft)
        os.replace(draft, path)


def column_file(name: str) -> str:
    """File name of an extractor's columns.

    >>> column_file("clip/vit-l-14")
    'clip-vit-l-14.parquet'
    """
    return name.replace("/", "-").replace(":", "-") + ".parquet"


def rows_of(records: Sequence[PictureRecord], *, per_prompt: bool) -> list[list[PictureRecord]]:
    """One row per picture, or one per prompt with all of its pictures.

    Raises:
        UserError: prompts have one picture, or differ in their number of pictures.
    """
    if not per_prompt:
        return [[record] for record in records]
    groups: dict[int, list[PictureRecord]] = {}
    for record in records:
        groups.setdefault(record.prompt_index, []).append(record)
    if len({len(group) for group in groups.values()}) != 1 or len(records) == len(groups):
        raise UserError(
            "diversity needs several pictures of each prompt, the same number for all: give --samples 4 or more"
        )
    return list(groups.values())


def _address(row: Sequence[PictureRecord]) -> str:
    """Hash of what a row's columns depend on: the pictures and their prompt."""
    if len(row) == 1 and not row[0].prompt:
        return row[0].digest
    text = "".join(record.digest for record in row) + row[0].prompt
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _table(block: Sequence[Sequence[PictureRecord]], computed: Mapping[str, Tensor]) -> pa.Table:
    columns: dict[str, Any] = {
        "index": pa.array([row[0].index for row in block]),
        "prompt_index": pa.array([row[0].prompt_index for row in block]),
        "picture": pa.array([_address(row) for row in block]),
    }
    for name, values in computed.items():
        array = values.detach().cpu().numpy()
        if len(array) != len(block):
            raise ValueError(f"{name}: {len(array)} rows for {len(block)}")
        flat = pa.array(array.reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1]) if array.ndim == 2 else flat
    return pa.table(columns)


def _tensor(column: pa.ChunkedArray) -> Tensor:
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(np.array(flat)).view(len(array), array.type.list_size)
    return torch.from_numpy(np.array(array.to_numpy(zero_copy_only=False)))
