"""Options of earlier versions that run folders still record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETIRED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "guidance_rescale": (0.0,),
    "normaliser": ("mean_abs", "none"),
    "edge_margin": (0.02,),
    "critic_weight_max": (10.0,),
    "critic_time_mean": (0.1,),
    "critic_time_std": (1.0,),
    "calm_steps": (2000,),
    "calm_weight": (0.75,),
}
"""Options of version 0.1.0 and their defaults, which its run folders record: they change nothing and are dropped."""


def without_retired_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """Drop retired options that hold their default, so that earlier run folders load.

    >>> without_retired_options({"name": "dmd2", "normaliser": "mean_abs", "guidance_rescale": 0.5})
    {'name': 'dmd2', 'guidance_rescale': 0.5}
    """
    kept = {key: value for key, value in method.items() if value not in RETIRED_OPTIONS.get(key, ())}
    if kept.get("name") == "dmd" and kept.get("huber_c") == 0.03:
        del kept["huber_c"]
    if isinstance(kept.get("gan"), Mapping):
        retired = {"layers": None, "loss": "hinge" if kept.get("name") == "sana_sprint" else "non_saturating"}
        kept["gan"] = {k: v for k, v in kept["gan"].items() if k not in retired or v != retired[k]}
    if kept.get("name") == "dmd" and isinstance(kept.get("gan"), Mapping) and not kept["gan"].get("student_weight"):
        del kept["gan"]
    return kept
