"""The steps of an export: describe, write weights, sample, run the card's code, compare, install."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from PIL import Image

from stepdistill.assets import resolve_path
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.schedules.families import VPSchedule
from stepdistill.errors import UserError
from stepdistill.export.card import CARD_NAME, base_licence, code_block, render_card
from stepdistill.export.contract import (
    DIFFUSERS_NAME,
    SamplerContract,
    Verification,
    file_digests,
    package_versions,
    plain_config,
    write_contract,
)
from stepdistill.export.experts import expert_names, save_experts, step_adapters
from stepdistill.export.folder import partial_folder
from stepdistill.export.gate import ExportError, compare, fresh_images, gate_blocks, same_arithmetic, trainer_images
from stepdistill.export.lora import file_header, lora_layers, save_diffusers_lora, save_kohya_lora
from stepdistill.export.pipelines import absent_parts, save_pipeline, save_teacher

if TYPE_CHECKING:
    from stepdistill.denoisers.base import Denoiser
    from stepdistill.distillers.base import Distiller
    from stepdistill.typing import Images

Format = Literal["diffusers", "kohya", "pipeline"]
DEFAULT_PROMPTS = ("a photo of a cat",)
MAX_PROMPTS = 4


@dataclass(frozen=True)
class Exporter:
    """A single export; the fields are the arguments of `export`."""

    distiller: Distiller
    folder: Path
    formats: tuple[Format, ...]
    name: str | None
    prompts: tuple[str, ...]
    recipe: str | None
    results: Mapping[str, Any] | None
    base_model: str | None
    licence: str | None
    dtype: torch.dtype | None
    size: tuple[int, int] | None
    verify: bool

    def run(self) -> SamplerContract:
        """Write and verify everything in a partial folder, then install it."""
        contract = self.describe()
        prompts = self.prompts[:MAX_PROMPTS]
        with partial_folder(self.folder) as partial:
            if self.recipe is not None:
                (partial / "recipe.yaml").write_text(self.recipe)
            self.write_weights(contract, partial)
            images = trainer_images(self.student, self.distiller.sampler(), prompts, self.size)
            write_images(images, partial / "images")
            self.write_card(contract, partial)
            if self.verify:
                checks = self.run_gate(contract, partial, images)
                contract = contract.model_copy(update={"verified": checks})
                self.write_card(contract, partial)
            contract = contract.model_copy(update={"files": file_digests(partial)})
            write_contract(contract, partial)
        return contract

    @cached_property
    def student(self) -> PipelineDenoiser:
        """The student.

        Raises:
            UserError: it is not the network of a diffusers pipeline.
        """
        student = self.distiller.student
        if not isinstance(student, PipelineDenoiser):
            raise UserError(
                f"{type(student).__name__} has no diffusers pipeline to export to; save student.role_state_dict() "
                "instead"
            )
        return student

    @cached_property
    def experts(self) -> dict[str, Denoiser]:
        """The student's networks by the name of their LoRA file."""
        return expert_names(self.distiller)

    @cached_property
    def base(self) -> str | None:
        """Folder or hub id of the teacher; None if it exists only in memory."""
        for name in filter(None, (self.base_model, self.student.pipe.config.get("_name_or_path"))):
            path = resolve_path(name)
            if path.is_dir() or is_hub_id(name):
                return relative_path(path) if path.is_dir() else name
        return None

    @cached_property
    def written_formats(self) -> tuple[Format, ...]:
        """The requested formats that this student supports.

        Raises:
            UserError: a format is unknown.
        """
        if unknown := set(self.formats) - set(get_args(Format)):
            raise UserError(f"unknown export format '{unknown.pop()}'; choose from {', '.join(get_args(Format))}")
        if len(self.experts) > 1:
            return ("diffusers",)
        if self.student.adapter is None:
            return ("pipeline",)
        return tuple(f for f in get_args(Format) if f in self.formats)

    @property
    def stored_dtype(self) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return self.student.inference_dtype if "pipeline" in self.written_formats else torch.float32

    def describe(self) -> SamplerContract:
        """Return the contract without verification results and files."""
        student, sampler = self.student, self.distiller.sampler()
        few_step = student.few_step(sampler)
        call = student.call_arguments(sampler)
        if self.size is not None:
            call |= {"height": self.size[0], "width": self.size[1]}
        is_vp = isinstance(student.schedule, VPSchedule)
        count = student.pipe.scheduler.config.num_train_timesteps
        method = self.distiller.credit[0]
        base = self.base_model or self.base
        stem = f"{Path(base).name if base else 'student'}-{method}-{sampler.num_steps}step".lower()
        return SamplerContract(
            schema=1,
            name=re.sub(r"[^\w.-]+", "-", self.name or stem),
            method=method,
            base_model=base,
            pipeline=type(student.pipe).__name__,
            component=student.network_name,
            scheduler=type(few_step.scheduler).__name__,
            scheduler_config=plain_config(few_step.scheduler.config),
            steps=sampler.num_steps,
            timesteps=[round(t * (count - 1)) for t in sampler.times] if is_vp else None,
            sigmas=call.get("sigmas"),
            guidance_scale=call["guidance_scale"],
            kind=sampler.kind,
            call=call,
            step_adapters=step_adapters(self.experts, sampler),
            times=list(sampler.times),
            dtype=str(self.stored_dtype).removeprefix("torch."),
            formats=list(self.written_formats),
            versions=package_versions(),
            recipe_hash=None if self.recipe is None else hashlib.sha256(self.recipe.encode()).hexdigest()[:16],
        )

    def write_weights(self, contract: SamplerContract, partial: Path) -> None:
        """Write the scheduler and the LoRA files or the pipeline."""
        student, sampler = self.student, self.distiller.sampler()
        formats = self.written_formats
        if "pipeline" in formats:
            save_pipeline(student.pipeline(sampler), partial, self.stored_dtype)
        student.few_step(sampler).scheduler.save_pretrained(partial / "scheduler")
        if student.adapter is None:
            return
        header = file_header(
            name=contract.name,
            base=contract.base_model or "",
            architecture=student.architecture,
            licence=self.known_licence or "",
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            usage=f"{contract.steps} steps, {contract.scheduler}, guidance off (cfg 1)",
        )
        if contract.step_adapters:
            save_experts(self.experts, contract.component, partial, header, self.stored_dtype)
            return
        layers = lora_layers(student.network, student.adapter, self.stored_dtype)
        if "diffusers" in formats:
            save_diffusers_lora(layers, contract.component, partial / DIFFUSERS_NAME, header)
        if "kohya" in formats:
            save_kohya_lora(layers, contract.component, partial / contract.kohya_name, header)

    @cached_property
    def known_licence(self) -> str | None:
        """The base model's licence, as given or from its local card."""
        return self.licence or base_licence(self.base)

    def write_card(self, contract: SamplerContract, partial: Path) -> None:
        """Write the model card, including the contract's verification results."""
        student = self.student
        kinds = [f for f in ("diffusers", "kohya") if f in contract.formats][:1]
        kinds += ["pipeline"] if "pipeline" in contract.formats else []
        blocks = {
            kind: code_block(
                contract,
                format=kind,
                base=self.base,
                folder=relative_path(self.folder),
                prompt=self.prompts[0],
                dtype=str(self.stored_dtype if kind == "pipeline" else student.inference_dtype),
                device=student.device.type,
                absent=absent_parts(student.pipe),
            )
            for kind in kinds
        }
        t = torch.tensor(contract.times, dtype=torch.float64)
        sigmas = student.schedule.sigma(t)
        is_vp = isinstance(student.schedule, VPSchedule)
        text = render_card(
            contract,
            blocks=blocks,
            prompts=self.prompts[:MAX_PROMPTS],
            paper=self.distiller.credit[1],
            comfy_sigmas=[*(sigmas / student.schedule.alpha(t) if is_vp else sigmas).tolist(), 0.0],
            licence=self.known_licence,
            hub_base=contract.base_model if is_hub_id(contract.base_model or "") else None,
            results=self.results,
        )
        (partial / CARD_NAME).write_text(text)

    def run_gate(self, contract: SamplerContract, partial: Path, reference: Images) -> dict[str, Verification]:
        """Run the card's code in a fresh process for each format and compare the images.

        Raises:
            ExportError: a file does not reproduce the trainer's images.
        """
        blocks = gate_blocks(contract, (partial / CARD_NAME).read_text())
        with tempfile.TemporaryDirectory(prefix="stepdistill-base-") as scratch:
            base = self.base or (save_teacher(self.student, Path(scratch)) if set(blocks) - {"pipeline"} else "")
            base = str(Path(base).resolve()) if Path(base).is_dir() else base
            images = fresh_images(blocks, self.prompts[:MAX_PROMPTS], partial, base, self.student.device)
        teacher: Any = self.distiller.teacher
        untrained = trainer_images(teacher, self.distiller.sampler(), self.prompts[:MAX_PROMPTS], self.size)
        is_exact = same_arithmetic(self.student, self.stored_dtype)
        checks = compare(images, reference, untrained, is_exact=is_exact)
        files = {"diffusers": DIFFUSERS_NAME, "kohya": contract.kohya_name}
        for kind, check in checks.items():
            if not check.passed:
                measured = check.max_difference if check.statistic == "max" else check.mean_difference
                raise ExportError(
                    f"'{files.get(kind, 'model_index.json')}' does not reproduce the trainer's images in a fresh "
                    f"process: {check.statistic} difference {measured:.2e}, tolerance {check.tolerance:.0e}"
                )
        return checks


def write_images(images: Images, folder: Path) -> None:
    """Write images in [0, 1] as `0.png`, `1.png`, ..."""
    folder.mkdir()
    for i, image in enumerate(images):
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")


def is_hub_id(name: str) -> bool:
    """Return whether this is `owner/model` and not a local path.

    >>> is_hub_id("stabilityai/sdxl-turbo"), is_hub_id("/data/model")
    (True, False)
    """
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not resolve_path(name).exists()


def relative_path(path: Path) -> str:
    """Return a path below the working directory as relative, any other as absolute."""
    relative = os.path.relpath(path)
    return str(path.resolve()) if relative.startswith("..") else Path(relative).as_posix()
