"""report.html: one page without external resources, made of a run folder alone."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import yaml
from PIL import Image

from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.embedded.measurements import Row
from stepdistill.evaluation.pages.pictures import fitted
from stepdistill.evaluation.pages.plots import Panel, draw_panel, is_empty, panels
from stepdistill.evaluation.pages.tables import RESULTS_NAME, cell, headlines, present_columns, read_pictures

REPORT_NAME = "report.html"
MAX_FRAMES = 12
"""Captions compared, and pictures shown of one series of sample grids, evenly spaced over training."""


def write_report(run_dir: str | Path, *, code: str | None = None, picture: Path | None = None) -> Path:
    """Write `report.html` from what the run folder holds; a part that is missing is left out of the page.

    Args:
        run_dir: holds any of recipe.yaml, metrics.jsonl, results.json, samples/, export/.
        code: the block that loads the export; default: the first Python block of `export/README.md`.
        picture: what that code drew; default: the first of `export/images`.
    """
    run_dir = Path(run_dir)
    records = read_records(run_dir / "metrics.jsonl")
    recipe = _text(run_dir / "recipe.yaml")
    contract = json.loads(_text(run_dir / "export/stepdistill.json") or "{}")
    document = json.loads(_text(run_dir / RESULTS_NAME) or "{}")
    rows = [Row.read(record) for record in document.get("rows", [])]
    steps = num_steps(recipe, contract)
    by_steps = sorted(rows, key=lambda row: row.steps != steps)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (files("stepdistill.evaluation.pages") / "templates/report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        header=header(recipe, contract, records),
        tiles=headlines(rows, steps=steps),
        rows=[_table_row(row, rows) for row in rows],
        columns=present_columns(rows),
        protocol=document.get("protocol") or {},
        search=next((row for row in by_steps if row.sampler_search), None),
        comparison=comparison(run_dir),
        curves=[
            (f"{name} / {panel.title}", _svg(draw_panel(panel))) for name, panel in ordered_panels(records)
        ],
        series=sample_series(run_dir / "samples"),
        recipe=recipe,
        code=code or _first_block(_text(run_dir / "export/README.md") or ""),
        picture=_picture(picture or run_dir / "export/images/0.png", enlarge_to=192),
    )
    path = run_dir / REPORT_NAME
    draft = run_dir / f".{REPORT_NAME}.partial"
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def read_records(path: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`; one that was cut off by an interruption is left out."""
    records = []
    for line in (_text(path) or "").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if "step" in record]


def header(
    recipe: str | None, contract: Mapping[str, Any], records: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What was done: title, and facts in a few words each."""
    given = yaml.safe_load(recipe or "") or {}
    method, roles, train = (given.get(key) or {} for key in ("method", "roles", "train"))
    source = (given.get("model") or {}).get("pretrained_model_name_or_path") or contract.get("base_model")
    steps = num_steps(recipe, contract)
    name = method.get("name") or contract.get("method")
    facts = {
        "method": name,
        "student": {"shared": f"LoRA, rank {roles.get('rank', '?')}", "full": "full copy"}.get(
            roles.get("mode", "")
        ),
        "training": f"{int(records[-1]['step']):,} steps" if records else None,
        "batch": train.get("train_batch_size"),
        "time": duration(total_seconds(records)) if records else None,
        "seed": train.get("seed"),
    }
    title = Path(str(source)).name if source else "A distilled model"
    words = f" in {steps_in_words(steps)}" if steps else ""
    return {
        "title": title + words,
        "facts": {key: value for key, value in facts.items() if value is not None},
    }


def num_steps(recipe: str | None, contract: Mapping[str, Any]) -> int | None:
    """The number of steps that the student was trained for."""
    method = (yaml.safe_load(recipe or "") or {}).get("method") or {}
    return method.get("num_steps") or contract.get("steps")


def total_seconds(records: Sequence[Mapping[str, float]]) -> float:
    """Seconds of training; the clock of a resumed run starts again at zero.

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


def _table_row(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Cells of the HTML table, the best of student and teachers marked, and a bar for the distance."""
    ranked = [each for each in rows if each.model != "floor"]
    cells = []
    for column in present_columns(rows):
        values = [getattr(each, column.key) for each in ranked if getattr(each, column.key) is not None]
        best = (
            max(values, key=lambda value: column.is_better * value, default=None)
            if column.is_better
            else None
        )
        is_best = (
            row.model != "floor" and len(values) > 1 and best is not None and getattr(row, column.key) == best
        )
        cells.append({"text": cell(row, column), "is_best": is_best, "key": column.key})
    longest = max((each.frechet_distance or 0 for each in rows), default=0)
    bar = 100 * max(row.frechet_distance or 0, 0) / longest if longest > 0 else 0
    return {
        "name": row.name or row.model,
        "model": row.model,
        "sampler": row.sampler,
        "cells": cells,
        "bar": bar,
    }


def ordered_panels(records: Sequence[Mapping[str, float]]) -> list[tuple[str, Panel]]:
    """Sections and panels, what is measured first; counters that stayed at zero are left out."""
    order = ["validation", "health", "loss"]
    found = panels(records)
    names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [(name, panel) for name in names for panel in found[name] if not is_empty(panel)]


def comparison(run_dir: Path) -> list[dict[str, Any]]:
    """Per caption, the picture of each row on the same noise."""
    drawn = read_pictures(run_dir)
    if drawn is None:
        return []
    return [
        {"caption": caption, "pictures": [(name, _data(strip[i])) for name, strip in drawn.rows.items()]}
        for i, caption in enumerate(drawn.captions[:MAX_FRAMES])
        if all(i < len(strip) for strip in drawn.rows.values())
    ]


def sample_series(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Sample grids in order of training, by the name before their number, at most `MAX_FRAMES` of each."""
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
        out[name] = [{"step": f"{step:,}", "source": embedded_sheet(path)} for step, path in kept]
    return out


def _picture(path: Path, enlarge_to: int = 0) -> str | None:
    """A picture file as a data address, or None."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        picture = image.convert("RGB")
    return _data(fitted(picture, enlarge_to) if max(picture.size) < enlarge_to else picture)


def embedded_sheet(path: Path) -> str:
    """A whole sample grid, compressed: there are many of them."""
    with Image.open(path) as image:
        return _data(image.convert("RGB"), "webp", quality=88)


def _data(picture: Image.Image, form: str = "png", **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(text: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _first_block(card: str) -> str | None:
    match = re.search(r"^```python\n(.*?)\n```$", card, flags=re.MULTILINE | re.DOTALL)
    return match.group(1) if match else None
