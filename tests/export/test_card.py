"""The model card: a header the hub reads, code by format, and honest words where something is not known."""

from __future__ import annotations

import yaml

from stepdistill.export.card import base_licence, card_blocks, code_block, render_card
from stepdistill.export.contract import SamplerContract, Verification
from stepdistill.export.exporter import gate_blocks
from stepdistill.export.gate import with_paths

CHECK = Verification(max_difference=2e-7, mean_difference=1e-8, tolerance=1e-3, statistic="max", effect=0.5)


def contract(formats=("diffusers", "kohya"), **changes):
    fields = {
        "schema": 1,
        "name": "fox",
        "method": "DMD2",
        "base_model": "me/base",
        "pipeline": "StableDiffusionPipeline",
        "component": "unet",
        "scheduler": "LCMScheduler",
        "scheduler_config": {},
        "steps": 4,
        "timesteps": [999, 749, 499, 249],
        "kind": "sde",
        "call": {"num_inference_steps": 4, "guidance_scale": 1.0},
        "times": [1.0, 0.75, 0.5, 0.25],
        "formats": list(formats),
        "versions": {"stepdistill": "0.1.0", "diffusers": "0.42.1"},
    }
    return SamplerContract(**{**fields, **changes})


def block(of, kind="diffusers", prompt="a fox"):
    return code_block(
        of, format=kind, base="me/base", folder="out", prompt=prompt, dtype="torch.float32", device="cpu"
    )


def card(of, **changes):
    kinds = [kind for kind in ("diffusers", "pipeline") if kind in of.formats]
    options = {
        "blocks": {kind: block(of, kind) for kind in kinds},
        "prompts": ["a fox", 'a "red" cup: 100%'],
        "paper": "https://arxiv.org/abs/2405.14867",
        "comfy_sigmas": [14.6146, 0.0],
        "licence": "mit",
        "hub_base": "me/base",
        "results": None,
    }
    return render_card(of, **{**options, **changes})


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads():
    head = header(card(contract()))
    assert head["base_model"] == "me/base"
    assert head["base_model_relation"] == "adapter"
    assert head["license"] == "mit"
    assert head["widget"][1] == {"text": 'a "red" cup: 100%', "output": {"url": "images/1.png"}}
    assert {"lora", "few-step", "dmd2", "template:sd-lora"} <= set(head["tags"])
    assert header(card(contract(("pipeline",))))["base_model_relation"] == "finetune"


def test_code_stays_code_whatever_the_prompt_says():
    wild = 'a "fox"\n\\ ``` {x}'
    text = block(contract(), prompt=wild)
    scope = {}
    line = next(line for line in text.splitlines() if line.startswith("image = pipe("))
    exec(line.replace("image = pipe(", "prompt = dict(prompt=").split(", **settings")[0] + ")", scope)
    assert scope["prompt"]["prompt"] == wild
    compile(text, "card", "exec")


def test_the_gate_runs_the_blocks_of_the_card():
    of = contract(("diffusers", "kohya", "pipeline"))
    blocks = gate_blocks(of, card(of))
    assert list(blocks) == ["diffusers", "kohya", "pipeline"]
    assert blocks["diffusers"] == card_blocks(card(of))[0]
    assert 'weight_name="fox_kohya.safetensors"' in blocks["kohya"]
    assert "load_lora_weights" not in blocks["pipeline"]


def test_places_are_set_and_nothing_else():
    before = block(contract())
    after = with_paths(before, {"base": 'C:\\models\\"x"', "folder": "/elsewhere"})
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 2
    scope = {}
    exec("\n".join(b for _, b in changed), scope)
    assert scope["base"] == 'C:\\models\\"x"'
    assert with_paths(after, {"base": "me/base", "folder": "out"}) == before


def test_what_was_verified_is_said_and_what_was_not():
    assert "executed in a fresh process" in card(contract(verified={"diffusers": CHECK}))
    assert "2.0e-07 (diffusers)" in card(contract(verified={"diffusers": CHECK}))
    text = card(contract())
    assert "**Not verified**" in text
    assert "executed in a fresh process" not in text


def test_settings_of_other_programs_depend_on_the_family_and_the_kind():
    unet = card(contract())
    assert "sampler `lcm`, scheduler `sgm_uniform`, steps 4, cfg 1.0" in unet
    assert "<lora:fox_kohya:1>" in unet
    flow = card(contract(component="transformer", kind="ode"))
    assert "sampler `euler`" in flow
    assert "A1111" not in flow
    assert "ComfyUI" not in card(contract(("pipeline",)))


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path):
    text = card(contract(), licence=None)
    assert header(text)["license"] == "other"
    assert "was not found" in text
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\n---\n# Base\n")
    assert base_licence(str(tmp_path)) == "openrail++"
    (tmp_path / "README.md").write_text("# Base\n")
    assert base_licence(str(tmp_path)) is None


def test_measured_rows_are_in_the_card():
    rows = [
        {"model": "teacher", "steps": 50, "frechet_distance": 2.63412, "kid": None},
        {"model": "student", "steps": 4, "frechet_distance": None, "kid": None},
    ]
    text = card(contract(), results={"protocol": {"features": "emoji-clip"}, "rows": rows})
    assert "| teacher | 50 | 2.634 |" in text
    assert "| student | 4 | - |" in text
    assert "kid" not in text
    assert '"features": "emoji-clip"' in text
