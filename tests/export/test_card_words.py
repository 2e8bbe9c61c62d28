"""What a card says for each device, format, kind of student and licence."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stepdistill.export.card import code_block, front_matter, render_card
from stepdistill.export.contract import SamplerContract


def contract_of(*formats: str, **changes: Any) -> SamplerContract:
    fields: dict[str, Any] = {
        "schema": 1, "name": "fox", "method": "DMD2", "base_model": "me/base", "pipeline": "StableDiffusion3Pipeline",
        "component": "transformer", "scheduler": "FlowMatchEulerDiscreteScheduler", "scheduler_config": {}, "steps": 2,
        "kind": "ode", "call": {"num_inference_steps": 2, "sigmas": [1.0, 0.5], "guidance_scale": 1.0},
        "times": [1.0, 0.5], "formats": list(formats), "versions": {"stepdistill": "0", "diffusers": "0"},
    }  # fmt: skip
    return SamplerContract(**{**fields, **changes})


def block_of(contract: SamplerContract, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "format": "diffusers", "base": "me/base", "folder": "out", "prompt": "a fox", "dtype": "torch.float16",
        "device": "cpu",
    }  # fmt: skip
    return code_block(contract, **{**settings, **changes})


def test_the_pipeline_is_moved_where_it_was_and_absent_parts_are_named() -> None:
    load = "StableDiffusion3Pipeline.from_pretrained(base, dtype=torch.float16)\n"
    assert load in block_of(contract_of("diffusers"))
    moved = block_of(contract_of("diffusers"), device="cuda", absent=["text_encoder_3", "tokenizer_3"])
    assert 'from_pretrained(base, text_encoder_3=None, tokenizer_3=None, dtype=torch.float16).to("cuda")\n' in moved


@pytest.mark.parametrize(
    ("format", "file"), [("diffusers", "pytorch_lora_weights.safetensors"), ("kohya", "fox_kohya.safetensors")]
)
def test_the_file_is_that_of_the_format(format: str, file: str) -> None:
    assert f'weight_name="{file}"' in block_of(contract_of("diffusers", "kohya"), format=format)


def test_experts_are_loaded_once_each_and_switched_at_every_step() -> None:
    experts = ["phase_1", "phase_1", "phase_2"]
    code = block_of(contract_of("diffusers", step_adapters=experts))
    assert 'for name in ["phase_1", "phase_2"]:' in code
    assert 'expert = ["phase_1", "phase_1", "phase_2"]' in code
    compile(code, "card", "exec")


def test_the_header_has_scalars_the_relation_and_numbered_pictures() -> None:
    header = yaml.safe_load(front_matter(contract_of("diffusers"), ["a", "b"], "mit", "me/base").strip("-\n"))
    assert header["inference"]["parameters"] == {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert header["base_model_relation"] == "adapter"
    assert [each["output"]["url"] for each in header["widget"]] == ["images/0.png", "images/1.png"]
    assert "license_name" not in header
    unknown = yaml.safe_load(front_matter(contract_of("diffusers", "pipeline"), [], None, "me/base"))
    assert unknown["base_model_relation"] == "finetune"
    assert (unknown["license"], unknown["license_name"]) == ("other", "that-of-the-base-model")
    assert "lora" not in unknown["tags"]
    assert "widget" not in unknown


def test_sigmas_for_other_programs_have_four_digits() -> None:
    text = render_card(
        contract_of("diffusers", "kohya"),
        blocks={"diffusers": "pass"},
        prompts=[],
        paper="",
        comfy_sigmas=[14.61464, 0.02917, 0.0],
        licence="mit",
        hub_base=None,
        results=None,
    )
    assert "14.6146, 0.0292, 0.0000" in text
