"""The model card: header, the code that was executed, settings for other programs, what was measured."""

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

_LORA_BLOCK = """\
import torch
from diffusers import {scheduler}, {pipeline}

base = {base}  # the teacher: a folder or its name on the hub
folder = {folder}  # where this card is: a folder or its name on the hub

pipe = {pipeline}.from_pretrained(base, {absent}dtype={dtype}){move}
pipe.load_lora_weights(folder, weight_name={weights})
pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")
settings = {settings}

torch.manual_seed(0)
image = pipe({prompt}, **settings).images[0]
image.save("sample.png")"""

_EXPERTS_BLOCK = """\
import torch
from diffusers import {scheduler}, {pipeline}

base = {base}  # the teacher: a folder or its name on the hub
folder = {folder}  # where this card is: a folder or its name on the hub

pipe = {pipeline}.from_pretrained(base, {absent}dtype={dtype}){move}
for name in {adapters}:
    pipe.load_lora_weights(folder, weight_name=name + ".safetensors", adapter_name=name)
pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")
expert = {experts}  # the LoRA of each step


def switch(pipe, step, timestep, tensors):
    pipe.set_adapters(expert[(step + 1) % len(expert)])
    return tensors


pipe.set_adapters(expert[0])
settings = {settings}
settings["callback_on_step_end"] = switch

torch.manual_seed(0)
image = pipe({prompt}, **settings).images[0]
image.save("sample.png")"""

_FOLDER_BLOCK = """\
import torch
from diffusers import {pipeline}

folder = {folder}  # where this card is: a folder or its name on the hub

pipe = {pipeline}.from_pretrained(folder, {absent}dtype={dtype}){move}
settings = {settings}

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
    """The code that loads the export with stock diffusers and draws `prompt`. It uses nothing of stepdistill.

    Args:
        base: what `base` is set to; None for a teacher that is only in memory.
        folder: what `folder` is set to.
        dtype: in which the pipeline is loaded, as code.
        device: where it is put.
        absent: parts that the pipeline does without and that diffusers wants to be told about (SD3's T5).
    """
    weights = contract.kohya_name if format == "kohya" else DIFFUSERS_NAME
    lora_template = _EXPERTS_BLOCK if contract.step_adapters else _LORA_BLOCK
    template = _FOLDER_BLOCK if format == "pipeline" else lora_template
    return template.format(
        scheduler=contract.scheduler,
        pipeline=contract.pipeline,
        base=json.dumps(base or PLACEHOLDER_BASE),
        folder=json.dumps(folder),
        weights=json.dumps(weights),
        adapters=json.dumps(list(dict.fromkeys(contract.step_adapters))),
        experts=json.dumps(contract.step_adapters),
        absent="".join(f"{name}=None, " for name in absent),
        dtype=dtype,
        move=f".to({json.dumps(device)})" if device != "cpu" else "",
        settings=json.dumps(contract.call),
        prompt=json.dumps(prompt),
    )


def card_blocks(card: str) -> list[str]:
    """The Python blocks of a model card, in order.

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
    """The text of README.md.

    Args:
        blocks: code by format, as `code_block` made it.
        prompts: of `images/0.png`, `images/1.png`...; empty when there are no images.
        comfy_sigmas: sigma / alpha (flow: sigma) at the sampler's times, and the final 0.
        licence: of the base model; None when it is not known.
        hub_base: name of the base model on the hub; None for a local one.
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


def front_matter(
    contract: SamplerContract, prompts: Sequence[str], licence: str | None, hub_base: str | None
) -> str:
    """The YAML header that the hub reads."""
    is_adapter = "pipeline" not in contract.formats
    header: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if hub_base:
        header |= {"base_model": hub_base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    header["license"] = licence or "other"
    if licence is None:
        header["license_name"] = "that-of-the-base-model"
    header["inference"] = {"parameters": {k: v for k, v in contract.call.items() if not isinstance(v, list)}}
    tags = [
        "text-to-image",
        "diffusers",
        "diffusers-training",
        "stepdistill",
        "few-step",
        contract.method.lower(),
    ]
    header["tags"] = tags + (["lora", "template:sd-lora"] if is_adapter else [])
    if prompts:
        header["widget"] = [
            {"text": prompt, "output": {"url": f"images/{i}.png"}} for i, prompt in enumerate(prompts)
        ]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000).strip()


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `results.json` as a Markdown table of the measures that any row has.

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
    """The licence that a local base model's own card states, or None.

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
