"""Tests that need the hub run where they are asked for: they fetch gigabytes of weights."""

from __future__ import annotations

import gc
import os
import traceback
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stepdistill.metrics.networks.clip import ClipFeatures

VARIABLE = "STEPDISTILL_NETWORK_TESTS"


def pytest_configure() -> None:
    """Collect garbage rarely: with diffusers loaded every full collection visits a million objects."""
    gc.set_threshold(50_000, 50, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `network`, unless the variable is set."""
    if os.environ.get(VARIABLE):
        return
    skip = pytest.mark.skip(reason=f"needs the hub; set {VARIABLE}=1 to run it")
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(skip)


@pytest.fixture
def gate_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code of model cards in this process: a fresh one takes ten seconds to import diffusers.

    For tests of what comes before the reload gate. Those of the gate itself are in tests/export/test_export.py.
    """
    import torch

    from stepdistill.export import gate, reload

    def run(command: list[str], *, cwd: str, **_: Any) -> CompletedProcess[str]:
        job, here = command[-1], Path.cwd()
        os.chdir(cwd)
        try:
            with torch.random.fork_rng():
                reload.main(job)
        except Exception:
            return CompletedProcess(command, 1, "", traceback.format_exc())
        finally:
            os.chdir(here)
        return CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(gate, "subprocess", SimpleNamespace(run=run))


@pytest.fixture(scope="session")
def clip() -> ClipFeatures:
    """A tiny random CLIP model."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from stepdistill.metrics.networks.clip import ClipFeatures
    from stepdistill.testing.tiny import tiny_tokenizer

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(16)
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = tower | {"image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return ClipFeatures(model, tokenizer, name="random")
