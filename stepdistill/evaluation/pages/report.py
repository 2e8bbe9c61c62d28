"""report.html: one self-contained page about a run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.document import RESULTS_NAME, ResultRow
from stepdistill.evaluation.pages.html import picture_url, render, sheet_url, svg_url
from stepdistill.evaluation.pages.pictures import fitted
from stepdistill.evaluation.pages.plots import Panel, draw_panel, is_empty, panels
from stepdistill.evaluation.pages.tables import cell, headlines, present_columns, read_pictures
from stepdistill.evaluation.picture_store import write_text

REPORT_NAME = "report.html"
MAX_FRAMES = 12
"""Captions compared, and sample grids shown of one series, evenly spaced over training."""


def write_report(run_dir: str | Path, *, code: str | None = None, picture: Path | None = None) -> Path:
    """Write `report.html` from the files of a run folder; missing parts are left out of the page.

    Args:
        run_dir: contains any of recipe.yaml, metrics.jsonl, results.json, samples/, export/.
        code: the block that loads the export; default: the first Python block of `export/README.md`.
        picture: the picture drawn by that code; default: the first of `export/images`.
    """
    run_dir = Path(run_dir)
    records = read_records(run_dir / "metrics.jsonl")
    recipe = _text(run_dir / "recipe.yaml")
    contract = json.loads(_text(run_dir / "export/stepdistill.json") or "{}")
    document = json.loads(_text(run_dir / RESULTS_NAME) or "{}")
    rows = [ResultRow.read(record) for record in document.get("rows", [])]
    steps = num_steps(recipe, contract)
    by_steps = sorted(rows, key=lambda row: row.steps != steps)
    page = render(
        "report.html.j2",
        header=header(recipe, contract, records),
        tiles=headlines(rows, steps=steps),
        rows=[_table_row(row, rows) for row in rows],
        columns=present_columns(rows),
        protocol=document.get("protocol") or {},
        features=feature_network(document.get("protocol") or {}),
        search=next((row for row in by_steps if row.sampler_search), None),
        comparison=comparison(run_dir),
        curves=[(f"{name} / {panel.title}", svg_url(draw_panel(panel))) for name, panel in ordered_panels(records)],
        series=sample_series(run_dir / "samples"),
        recipe=recipe,
        code=code or _first_block(_text(run_dir / "export/README.md") or ""),
        picture=_picture(picture or run_dir / "export/images/0.png", enlarge_to=192),
    )
    path = run_dir / REPORT_NAME
    write_text(path, page)
    return path


def feature_network(protocol: Mapping[str, Any]) -> str | None:
    """The variant behind the Frechet distances of a protocol."""
    variants = protocol.get("variants") or {}
    return variants.get("frechet_distance") or variants.get("fid")


def read_records(path: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without a line cut off by an interruption."""
    records = []
    for line in (_text(path) or "").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if "step" in record]


def header(recipe: str | None, contract: Mapping[str, Any], records: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Title and key facts of the run."""
    given = yaml.safe_load(recipe or "") or {}
    method, roles, train = (given.get(key) or {} for key in ("method", "roles", "train"))
    source = (given.get("model") or {}).get("pretrained_model_name_or_path") or contract.get("base_model")
    steps = num_steps(recipe, contract)
    name = method.get("name") or contract.get("method")
    facts = {
        "method": name,
        "student": {"shared": f"LoRA, rank {roles.get('rank', '?')}", "full": "full copy"}.get(roles.get("mode", "")),
        "training": f"{int(records[-1]['step']):,} steps" if records else None,
        "batch": train.get("train_batch_size"),
        "time": duration(total_seconds(records)) if records else None,
        "seed": train.get("seed"),
    }
    title = Path(str(source)).name if source else "A distilled model"
    words = f" in {steps_in_words(steps)}" if steps else ""
    return {"title": title + words, "facts": {key: value for key, value in facts.items() if value is not None}}


def num_steps(recipe: str | None, contract: Mapping[str, Any]) -> int | None:
    """The number of steps the student was trained for."""
    method = (yaml.safe_load(recipe or "") or {}).get("method") or {}
    return method.get("num_steps") or contract.get("steps")


def total_seconds(records: Sequence[Mapping[str, float]]) -> float:
    """Seconds of training, summed over resumed runs, whose clocks restart at zero.

    >>> total_seconds([{"time": 1.0}, {"time": 5.0}, {"time": 0.5}, {"time": 2.0}])
    7.0
    """
    times = [float(record["time"]) for record in records if "time" in record]
    ends = [now for now, later in pairwise(times) if later < now]
    return sum(ends) + (times[-1] if times else 0.0)


def duration(seconds: float) -> str:
    """A time span in words.

    >>> duration(42), duration(200), duration(5400)
    ('42 s', '3 min 20 s', '1 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _table_row(row: ResultRow, rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Cells of the HTML table, the best of student and teachers marked, and a bar for the distance."""
    ranked = [each for each in rows if each.model != "floor"]
    cells = []
    for column in present_columns(rows):
        values = [getattr(each, column.key) for each in ranked if getattr(each, column.key) is not None]
        best = max(values, key=lambda value: column.is_better * value, default=None) if column.is_better else None
        is_best = row.model != "floor" and len(values) > 1 and best is not None and getattr(row, column.key) == best
        cells.append({"text": cell(row, column), "is_best": is_best, "key": column.key})
    longest = max((each.frechet_distance or 0 for each in rows), default=0)
    bar = 100 * max(row.frechet_distance or 0, 0) / longest if longest > 0 else 0
    return {"name": row.name or row.model, "model": row.model, "sampler": row.sampler, "cells": cells, "bar": bar}


def ordered_panels(records: Sequence[Mapping[str, float]]) -> list[tuple[str, Panel]]:
    """Sections and panels, measurements first, without counters that stayed at zero."""
    order = ["validation", "health", "loss"]
    found = panels(records)
    names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [(name, panel) for name in names for panel in found[name] if not is_empty(panel)]


def comparison(run_dir: Path) -> list[dict[str, Any]]:
    """For each caption, the picture of each row from the same noise."""
    drawn = read_pictures(run_dir)
    if drawn is None:
        return []
    return [
        {"caption": caption, "pictures": [(name, picture_url(strip[i])) for name, strip in drawn.rows.items()]}
        for i, caption in enumerate(drawn.captions[:MAX_FRAMES])
        if all(i < len(strip) for strip in drawn.rows.values())
    ]


def sample_series(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Sample grids over training by the name before their number, at most `MAX_FRAMES` of each."""
    series: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.glob("*.png"):
        match = re.fullmatch(r"(.*?)[_-]?(\d+)", path.stem)
        if match:
            series.setdefault(match.group(1) or "samples", []).append((int(match.group(2)), path))
    out = {}
    for name, found in sorted(series.items()):
        found.sort()
        every = (len(found) - 1) / (MAX_FRAMES - 1)
        kept = found if len(found) <= MAX_FRAMES else [found[round(i * every)] for i in range(MAX_FRAMES)]
        out[name] = [{"step": f"{step:,}", "source": sheet_url(path)} for step, path in kept]
    return out


def _picture(path: Path, enlarge_to: int = 0) -> str | None:
    """A picture file as a data URL, or None."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        picture = image.convert("RGB")
    return picture_url(fitted(picture, enlarge_to) if max(picture.size) < enlarge_to else picture)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _first_block(card: str) -> str | None:
    match = re.search(r"^```python\n(.*?)\n```$", card, flags=re.MULTILINE | re.DOTALL)
    return match.group(1) if match else None
