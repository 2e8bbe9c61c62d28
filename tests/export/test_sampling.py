"""What a contract says of files and of experts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from stepdistill.export.contract import (
    CONTRACT_NAME,
    SamplerContract,
    Verification,
    apply_sampler,
    file_digests,
    plain_config,
    switch_adapters,
)

FIELDS: dict[str, Any] = {
    "schema": 1, "name": "fox", "method": "DMD2", "base_model": None, "pipeline": "P", "component": "unet",
    "scheduler": "LCMScheduler", "scheduler_config": {}, "steps": 3, "kind": "sde", "call": {"num_inference_steps": 3},
    "times": [1.0, 0.6, 0.3], "versions": {},
}  # fmt: skip


class Pipe:
    """Remembers the adapters that were set."""

    def __init__(self) -> None:
        self.components = {"unet": None}
        self.scheduler = None
        self.adapters: list[str] = []

    def set_adapters(self, name: str) -> None:
        self.adapters.append(name)


@pytest.mark.parametrize("by_contract", [False, True])
def test_every_step_of_every_image_runs_under_its_expert(by_contract: bool) -> None:
    pipe: Any = Pipe()
    experts = ["phase_1", "phase_1", "phase_2"]
    if by_contract:
        contract = SamplerContract(**FIELDS, formats=["diffusers"], step_adapters=experts)
        call = apply_sampler(pipe, contract)
        assert call["num_inference_steps"] == 3
        switch = call["callback_on_step_end"]
    else:
        switch = switch_adapters(pipe, experts)
    ran = []
    for _image in range(2):
        for step in range(3):
            ran.append(pipe.adapters[-1])
            assert switch(pipe, step, None, {"latents": step}) == {"latents": step}
    assert ran == experts * 2


@pytest.mark.parametrize(
    ("formats", "experts", "expected"),
    [
        (["diffusers", "kohya"], [], "pytorch_lora_weights.safetensors"),
        (["kohya"], [], "fox_kohya.safetensors"),
        (["pipeline"], [], None),
        (["diffusers"], ["phase_1", "phase_2", "phase_2"], None),
    ],
)
def test_the_file_to_load(formats: list[str], experts: list[str], expected: str | None) -> None:
    assert SamplerContract(**FIELDS, formats=formats, step_adapters=experts).lora_name == expected


@pytest.mark.parametrize(("statistic", "passed"), [("max", False), ("mean", True)])
def test_the_bound_is_of_its_statistic(statistic: Any, passed: bool) -> None:
    found = Verification(max_difference=0.2, mean_difference=0.1, tolerance=0.1, statistic=statistic, effect=1.0)
    assert found.passed == passed


def test_private_entries_of_a_scheduler_are_left_out() -> None:
    assert plain_config({"_class_name": "X", "_use_default_values": [], "shift": 3.0}) == {"shift": 3.0}


def test_digests_are_of_whole_files_in_all_folders_but_not_of_the_contract(tmp_path: Path) -> None:
    large = bytes(range(256)) * 70_000  # more than one chunk of 16 MiB
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/weights").write_bytes(large)
    (tmp_path / CONTRACT_NAME).write_text("{}")
    assert file_digests(tmp_path) == {
        "unet/weights": {"bytes": len(large), "sha256": hashlib.sha256(large).hexdigest()}
    }
