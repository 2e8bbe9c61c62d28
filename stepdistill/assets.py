"""Paths of the embedded teachers, glyphs and recipes, in a checkout or an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = {
    "assets": (_PACKAGE / "_assets", _PACKAGE.parent / "assets"),
    "recipes": (_PACKAGE / "_recipes", _PACKAGE.parent / "recipes"),
}


def asset_path(name: str, kind: str = "assets") -> Path:
    """Return the path of an embedded asset or recipe.

    Raises:
        FileNotFoundError: neither the wheel nor the checkout contains it.
    """
    for root in _ROOTS[kind]:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"no '{name}' in the embedded {kind}; looked in {', '.join(map(str, _ROOTS[kind]))}")


def resolve_path(path: str | Path) -> Path:
    """Return an existing path as given, else the embedded file of that name (`assets/emoji-sd`, `recipes/x.yaml`)."""
    given = Path(path).expanduser()
    if given.exists() or given.is_absolute() or not given.parts:
        return given
    kind, name = given.parts[0], "/".join(given.parts[1:])
    if kind in _ROOTS and name:
        for root in _ROOTS[kind]:
            if (root / name).exists():
                return root / name
    return given


def user_cache() -> Path:
    """Return `$STEPDISTILL_CACHE`, else `stepdistill` under `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("STEPDISTILL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "stepdistill"


def cache_folder(name: str) -> Path | None:
    """Return a folder of the user's cache, created if missing; None if it is not writable."""
    folder = user_cache() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
