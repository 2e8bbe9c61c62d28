"""The model card: front matter, verified code, settings for other programs, measured results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from stepdistill.export.contract import DIFFUSERS_NAME, SamplerContract

CARD_NAME = "README.md"
PLACEHOLDER_BASE = "path/to/the/base-model"

_LOAD_PIPELINE = """\
import torch
from diffusers import {imports}

{base_line}folder = {folder}  # where this card is: a folder or its name on the hub

pipe = {pipeline}.from_pretrained({source}, {absent}dtype={dtype}){move}
"""

_LOAD_LORA = """\
pipe.load_lora_weights(folder, weight_name={weights})
"""

_LOAD_EXPERTS = """\
for name in {adapters}:
    pipe.load_lora_weights(folder, weight_name=name + ".safetensors", adapter_name=name)
"""

_LOAD_SCHEDULER = """\
pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")
"""

_SWITCH_EXPERTS = """\
expert = {experts}  # the LoRA of each step


def switch(pipe, step, timestep, tensors):
    pipe.set_adapters(expert[(step + 1) % len(expert)])
    return tensors


pipe.set_adapters(expert[0])
"""

_SAMPLE = """\
settings = {settings}
{callback}
torch.manual_seed(0)
image = pipe({prompt}, **settings).images[0]
image.save("sample.png")"""

_MEASURES = (
    "steps", "nfe", "guidance_scale", "frechet_distance", "frechet_distance_to_teacher", "kid", "clip_score",
    "prompt_accuracy", "coverage", "latency_s", "n",
)  # fmt: skip


def code_block(
    contract: SamplerContract,
    *,
    format: str,
    base: str | None,
    folder: str,
    prompt: str,
    dtype: str,
    device: str,
    absent: Sequence[str] = (),
) -> str:
    """Return code that loads the export with stock diffusers and samples `prompt`; it does not use stepdistill.

    Args:
        base: value of `base`; None for a teacher that exists only in memory.
        folder: value of `folder`.
        dtype: dtype to load the pipeline in, as code.
        device: device to move the pipeline to.
        absent: missing components that diffusers needs an explicit None for (SD3's T5).
    """
    is_pipeline, has_experts = format == "pipeline", bool(contract.step_adapters)
    load_lora = _LOAD_EXPERTS + _LOAD_SCHEDULER + _SWITCH_EXPERTS if has_experts else _LOAD_LORA + _LOAD_SCHEDULER
    template = _LOAD_PIPELINE + ("" if is_pipeline else load_lora) + _SAMPLE
    base_line = f"base = {json.dumps(base or PLACEHOLDER_BASE)}  # the teacher: a folder or its name on the hub\n"
    return template.format(
        imports=contract.pipeline if is_pipeline else f"{contract.scheduler}, {contract.pipeline}",
        base_line="" if is_pipeline else base_line,
        source="folder" if is_pipeline else "base",
        scheduler=contract.scheduler,
        pipeline=contract.pipeline,
        folder=json.dumps(folder),
        weights=json.dumps(contract.kohya_name if format == "kohya" else DIFFUSERS_NAME),
        adapters=json.dumps(list(dict.fromkeys(contract.step_adapters))),
        experts=json.dumps(contract.step_adapters),
        absent="".join(f"{name}=None, " for name in absent),
        dtype=dtype,
        move=f".to({json.dumps(device)})" if device != "cpu" else "",
        settings=json.dumps(contract.call),
        callback='settings["callback_on_step_end"] = switch\n' if has_experts and not is_pipeline else "",
        prompt=json.dumps(prompt),
    )


def card_blocks(card: str) -> list[str]:
    """Return the Python blocks of a model card, in order.

    >>> card_blocks("text\\n```python\\nx = 1\\n```\\nmore")
    ['x = 1']
    """
    return re.findall(r"^```python\n(.*?)\n```$", card, flags=re.MULTILINE | re.DOTALL)


def render_card(
    contract: SamplerContract,
    *,
    blocks: Mapping[str, str],
    prompts: Sequence[str],
    paper: str,
    comfy_sigmas: Sequence[float],
    licence: str | None,
    hub_base: str | None,
    results: Mapping[str, Any] | None,
) -> str:
    """Return the text of README.md.

    Args:
        blocks: output of `code_block` by format.
        prompts: prompts of `images/0.png`, `images/1.png`, ...; empty without images.
        comfy_sigmas: sigma / alpha (flow: sigma) at the sampler's times, with a trailing 0.
        licence: licence of the base model; None if unknown.
        hub_base: hub id of the base model; None for a local one.
        results: a `results.json` document, or None.
    """
    kohya = contract.kohya_name if "kohya" in contract.formats else None
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((files("stepdistill.export") / "card.md.j2").read_text())
    return template.render(
        contract=contract,
        front_matter=front_matter(contract, prompts, licence, hub_base),
        blocks={_titles(contract)[name]: block for name, block in blocks.items()},
        images=bool(prompts),
        base_name=f"[{hub_base}](https://huggingface.co/{hub_base})"
        if hub_base
        else f"`{contract.base_model or 'a pipeline in memory'}`",
        method_link=f"[{contract.method}]({paper})" if paper else contract.method,
        kohya=kohya,
        comfy_sigmas=", ".join(f"{sigma:.4f}" for sigma in comfy_sigmas),
        rows=results_table(results["rows"]) if results else "",
        protocol=json.dumps(results.get("protocol")) if results and results.get("protocol") else "",
        licence=_licence_text(licence, contract.base_model),
    )


def front_matter(contract: SamplerContract, prompts: Sequence[str], licence: str | None, hub_base: str | None) -> str:
    """Return the YAML front matter for the hub."""
    is_adapter = "pipeline" not in contract.formats
    header: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if hub_base:
        header |= {"base_model": hub_base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    header["license"] = licence or "other"
    if licence is None:
        header["license_name"] = "that-of-the-base-model"
    header["inference"] = {"parameters": {k: v for k, v in contract.call.items() if not isinstance(v, list)}}
    tags = ["text-to-image", "diffusers", "diffusers-training", "stepdistill", "few-step", contract.method.lower()]
    header["tags"] = tags + (["lora", "template:sd-lora"] if is_adapter else [])
    if prompts:
        header["widget"] = [{"text": prompt, "output": {"url": f"images/{i}.png"}} for i, prompt in enumerate(prompts)]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000).strip()


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows of `results.json` as a Markdown table, omitting measures that no row has.

    >>> print(results_table([{"model": "student", "steps": 4, "kid": None}]))
    | model | steps |
    |---|---|
    | student | 4 |
    """
    columns = ["model", *(name for name in _MEASURES if any(row.get(name) is not None for row in rows))]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def base_licence(base: str | None) -> str | None:
    """Return the licence from a local base model's card, or None.

    >>> base_licence(None) is None
    True
    """
    card = Path(base or "") / CARD_NAME
    if base is None or not card.is_file():
        return None
    header = re.match(r"---\n(.*?)\n---\n", card.read_text(), flags=re.DOTALL)
    fields = yaml.safe_load(header.group(1)) if header else None
    return fields.get("license") if isinstance(fields, dict) else None


def _titles(contract: SamplerContract) -> dict[str, str]:
    if contract.step_adapters:
        return {"diffusers": "The LoRAs of the experts on their base model, switched after each step:"}
    other = f", or `{contract.kohya_name}` as `weight_name`" if "kohya" in contract.formats else ""
    return {
        "diffusers": f"The LoRA on its base model (`{DIFFUSERS_NAME}`{other}):",
        "kohya": f"The LoRA on its base model (`{contract.kohya_name}`):",
        "pipeline": "The whole pipeline:",
    }


def _licence_text(licence: str | None, base: str | None) -> str:
    if licence:
        return f"That of the base model: `{licence}`. The student is derived from it."
    return (
        f"The base model's licence was not found{f' in {base}' if base else ''}. A student is derived from its "
        "base model: look the licence up and put it here and into the header before you publish this."
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
