"""The contract of an export before anything is written: names, timesteps, size, licence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from stepdistill.denoisers import Roles, load_teacher
from stepdistill.distillers.distribution.dmd2 import DMD2
from stepdistill.export import export, read_contract
from stepdistill.export.exporter import write_images
from stepdistill.testing import tiny_pipeline


@pytest.fixture(scope="module")
def distiller() -> DMD2:
    return DMD2(load_teacher(tiny_pipeline("sd")), DMD2.Config(num_steps=4), roles=Roles(rank=2))


def test_the_contract_of_a_student_in_memory(distiller: DMD2, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(6)]
    contract = export(
        distiller,
        tmp_path / "out",
        name="a fox / 1",
        prompts=prompts,
        recipe="method: {}\n",
        size=(24, 16),
        verify=False,
    )
    assert contract.name == "a-fox-1"
    assert (contract.call["height"], contract.call["width"]) == (24, 16)
    assert contract.timesteps == [round(999 * t) for t in contract.times]
    assert contract.recipe_hash == hashlib.sha256(b"method: {}\n").hexdigest()[:16]
    assert read_contract(tmp_path / "out") == contract
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [f"{i}.png" for i in range(4)]


def test_the_licence_is_the_one_given_or_that_of_the_base_models_card(tmp_path: Path) -> None:
    tiny_pipeline("sd").save_pretrained(tmp_path / "base")
    (tmp_path / "base/README.md").write_text("---\nlicense: openrail++\n---\n# Base\n")
    teacher = load_teacher(tmp_path / "base")
    distiller = DMD2(teacher, DMD2.Config(num_steps=1), roles=Roles(rank=2))

    def card(**options: Any) -> str:
        export(distiller, tmp_path / "out", verify=False, **options)
        return (tmp_path / "out/README.md").read_text()

    assert "license: openrail++" in card()
    assert "license: mit" in card(licence="mit")


def test_images_are_rounded_and_clamped(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    images = torch.tensor([-0.5, 1.5, 0.501 / 255]).view(1, 3, 1, 1)
    write_images(images, tmp_path / "images")
    assert np.asarray(Image.open(tmp_path / "images/0.png")).tolist() == [[[0, 255, 1]]]
