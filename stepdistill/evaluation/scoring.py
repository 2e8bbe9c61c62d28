"""From pictures to columns: what an eye sees in each picture, one parquet file for each eye, gone on with after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
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
from stepdistill.evaluation.picture_store import PARTS, PictureRecord, PictureStore
from stepdistill.evaluation.processes import Crew

_EYE = b"stepdistill.eye"


class Eye(Protocol):
    """Sees pictures: a feature network, a scorer, or the judge of the embedded problem.

    Attributes:
        name: the variant, which labels the numbers and names the file.
        sees_prompts: whether a row is all pictures of one prompt instead of one picture.
    """

    name: str
    sees_prompts: bool

    def record(self) -> dict[str, Any]:
        """What the columns depend on, JSON-able: columns of another record are made anew."""
        ...

    def __call__(
        self, pictures: Sequence[Image.Image], records: Sequence[PictureRecord]
    ) -> Mapping[str, Tensor]:
        """Columns (rows,) or (rows, d) for pictures and what the manifest says of them."""
        ...


@dataclass(frozen=True)
class Columns:
    """What an eye saw in all pictures, in their order."""

    values: dict[str, Tensor]
    prompt_index: Tensor
    """Number of each row's prompt."""
    categories: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.prompt_index)


class ScoreTable:
    """The columns of one eye on one set of pictures: `folder/scores/<eye>.parquet`.

    Args:
        folder: of the run; parts go to `folder/.parts`.
        eye: its name and record are kept with the columns.
    """

    def __init__(self, folder: Path, eye: Eye) -> None:
        slug = eye.name.replace("/", "-").replace(":", "-")
        self.path = folder / "scores" / f"{slug}.parquet"
        self.parts = folder / PARTS / "scores" / slug
        self.eye = eye
        self.metadata = {_EYE: json.dumps(eye.record(), sort_keys=True).encode()}

    def make(
        self,
        store: PictureStore,
        records: Sequence[PictureRecord],
        *,
        batch_size: int,
        crew: Crew,
        progress: Progress | None = None,
    ) -> None:
        """See what has not been seen yet; every process its blocks. A block with a row that is missing is seen as a whole."""
        done = self._seen()
        rows = _rows(records, by_prompt=self.eye.sees_prompts)
        per_row = max(len(row) for row in rows)
        blocks = [rows[block] for block in batches(len(rows), max(batch_size // per_row, 1))]
        missing = [block for block in blocks if any(_address(row) not in done for row in block)]
        crew.wait()  # All have to see the same blocks missing before the first is filled.
        own = crew.share(missing)
        for number, block in enumerate(own, start=1):
            flat = [record for row in block for record in row]
            with torch.no_grad():
                seen = self.eye([store.open(record) for record in flat], flat)
            self._write(self.parts / f"{block[0][0].index:06d}.parquet", _table(block, seen))
            if progress is not None:
                progress(self.eye.name, number, len(own))

    def merge(self, records: Sequence[PictureRecord]) -> None:
        """Make one file of the parts, one row for each picture (or prompt) of `records` in order."""
        rows = _rows(records, by_prompt=self.eye.sees_prompts)
        tables = [table for table in self._tables() if len(table)]
        table = pa.concat_tables(tables).combine_chunks()
        places = {address: place for place, address in enumerate(table["picture"].to_pylist())}
        table = table.take([places[_address(row)] for row in rows])
        # Equal pictures share an address, so the numbers are set anew.
        table = table.set_column(0, "index", pa.array([row[0].index for row in rows]))
        table = table.set_column(1, "prompt_index", pa.array([row[0].prompt_index for row in rows]))
        self._write(self.path, table)
        shutil.rmtree(self.parts, ignore_errors=True)

    def read(self, records: Sequence[PictureRecord]) -> Columns:
        """The columns of the merged file."""
        table = pq.read_table(self.path)
        names = [name for name in table.column_names if name not in ("index", "prompt_index", "picture")]
        rows = _rows(records, by_prompt=self.eye.sees_prompts)
        return Columns(
            {name: _tensor(table[name]) for name in names},
            torch.tensor([row[0].prompt_index for row in rows]),
            tuple(row[0].category for row in rows),
        )

    def _tables(self) -> list[pa.Table]:
        """What is there of this very eye, parts last."""
        files = [self.path, *sorted(self.parts.glob("*.parquet"))]
        tables = [pq.read_table(path) for path in files if path.is_file()]
        return [table for table in tables if (table.schema.metadata or {}).get(_EYE) == self.metadata[_EYE]]

    def _seen(self) -> set[str]:
        return {address for table in self._tables() for address in table["picture"].to_pylist()}

    def _write(self, path: Path, table: pa.Table) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.partial")
        pq.write_table(table.replace_schema_metadata(self.metadata), draft)
        os.replace(draft, path)


def _rows(records: Sequence[PictureRecord], *, by_prompt: bool) -> list[list[PictureRecord]]:
    """Pictures one by one, or those of each prompt together."""
    if not by_prompt:
        return [[record] for record in records]
    groups: dict[int, list[PictureRecord]] = {}
    for record in records:
        groups.setdefault(record.prompt_index, []).append(record)
    if len({len(group) for group in groups.values()}) != 1 or len(records) == len(groups):
        raise UserError(
            "diversity needs several pictures of each prompt, equally many: give --samples 4 or more"
        )
    return list(groups.values())


def _address(row: Sequence[PictureRecord]) -> str:
    """Of the pictures and their prompt: what a row's numbers follow from."""
    if len(row) == 1 and not row[0].prompt:
        return row[0].digest
    text = "".join(record.digest for record in row) + row[0].prompt
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _table(block: Sequence[Sequence[PictureRecord]], seen: Mapping[str, Tensor]) -> pa.Table:
    columns: dict[str, Any] = {
        "index": pa.array([row[0].index for row in block]),
        "prompt_index": pa.array([row[0].prompt_index for row in block]),
        "picture": pa.array([_address(row) for row in block]),
    }
    for name, values in seen.items():
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
