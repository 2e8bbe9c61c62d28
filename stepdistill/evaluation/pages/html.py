"""Self-contained HTML pages: templates with escaped values, and pictures as data URLs."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image


def render(template: str, **values: Any) -> str:
    """Render a template of `templates/`; values are escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (files("stepdistill.evaluation.pages") / "templates" / template).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def picture_url(picture: Image.Image, form: str = "png", **options: Any) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return _url(buffer.getvalue(), form)


def svg_url(text: str) -> str:
    """An SVG document as a data URL."""
    return _url(text.encode(), "svg+xml")


def sheet_url(path: Path) -> str:
    """A picture file, compressed, as a data URL."""
    with Image.open(path) as image:
        return picture_url(image.convert("RGB"), "webp", quality=88)


def _url(content: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
