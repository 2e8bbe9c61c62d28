"""Recipes: YAML validated by frozen pydantic models. Errors suggest the nearest key; the resolved recipe reproduces the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stepdistill.assets import resolve_path
from stepdistill.data.config import PairsConfig
from stepdistill.denoisers.config import Roles
from stepdistill.distillers.config import DistillerConfig
from stepdistill.distillers.registry import ENTRIES, METHODS, options_of
from stepdistill.errors import UserError, did_you_mean
from stepdistill.training.retired import without_retired_options

if TYPE_CHECKING:
    from stepdistill.distillers.base import Distiller


def no_in_words(value: object) -> object:
    """Turn false back into "no": YAML reads a bare `no` as false."""
    return "no" if value is False else value


class Section(BaseModel):
    """A section of a recipe: frozen, rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(Section):
    """The teacher."""

    pretrained_model_name_or_path: str = Field(description="folder or hub id of a diffusers pipeline")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="precision of the frozen weights")
    prompt_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="pipeline call arguments that affect the prompt embedding: clip_skip, max_sequence_length (SD3)",
    )


class DataConfig(Section):
    """Prompts and images."""

    prompts: str = Field(
        default="emoji",
        description="'emoji', or a .txt (one prompt per line), .jsonl or .parquet file ('prompt' or 'caption' column)",
    )
    images: str | None = Field(
        default=None,
        description="'emoji', a folder (image + .txt) or a parquet file; only for methods that need real images",
    )
    num_prompts: int | None = Field(default=None, ge=1, description="maximal number of prompts")
    num_images: int | None = Field(default=None, ge=1, description="maximal number of images")
    negative_prompt: str = Field(default="", description="negative prompt of guidance")
    pairs: PairsConfig = Field(
        default=PairsConfig(), description="teacher images of known noises, for methods that regress to them"
    )
    cache_dir: str | None = Field(default=None, description="folder for cached embeddings and latents; null: no cache")


class TrainConfig(Section):
    """Optimisation; names follow diffusers' training scripts."""

    learning_rate: float = Field(default=1e-5, gt=0, description="learning rate of the student")
    critic_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of the critics; null: the student's"
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="decay after the warm-up"
    )
    lr_warmup_steps: int = Field(default=0, ge=0)
    lr_final_factor: float = Field(
        default=0.0, ge=0, le=1, description="final learning rate as a fraction of the initial one"
    )
    train_batch_size: int = Field(default=1, ge=1, description="samples per process and micro-batch")
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_train_steps: int = Field(default=1000, ge=1, description="iterations; the critics are updated in each")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_weight_decay: float = Field(default=0.0, ge=0)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    use_8bit_adam: bool = Field(default=False, description="needs the extra [quant]")
    max_grad_norm: float = Field(default=10.0, gt=0, description="gradient clipping norm, per player")
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the averaged student, which is validated and exported; 0: off"
    )
    mixed_precision: Annotated[Literal["auto", "no", "bf16"], BeforeValidator(no_in_words)] = Field(
        default="auto", description="auto: bf16 on devices with native bf16 (GPUs, few CPUs)"
    )
    gradient_checkpointing: bool = False
    seed: int = 0
    output_dir: str = "runs/run"
    start_from: str | None = Field(
        default=None,
        description="folder of a finished run with the same model and roles: initialise the student from its averaged student "
        "instead of the teacher",
    )
    resume_from_checkpoint: str | None = Field(
        default="latest", description="'latest', a checkpoint folder, or null to start from scratch"
    )
    checkpointing_steps: int = Field(default=500, ge=1)
    checkpoints_total_limit: int | None = Field(default=3, ge=1)
    log_every: int = Field(default=10, ge=1, description="iterations between reads of the device")
    max_skipped_steps: int = Field(default=20, ge=1, description="stop after this number of non-finite steps")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")


class ValidationConfig(Section):
    """Validation during training and evaluation at the end."""

    prompts: list[str] = Field(default_factory=list, description="empty: the first training prompts")
    every: int = Field(default=500, ge=1, description="iterations between validations; one runs before the first step")
    teacher_steps: int = Field(default=50, ge=1)
    teacher_guidance_scale: float | None = Field(default=None, ge=0, description="null: the method's guidance_scale")
    seed: int = 0
    num_scored: int = Field(
        default=0, ge=0, description="pictures scored at each validation (emoji protocol only); 0: off"
    )
    protocol: str | None = Field(
        default=None, description="protocol of the evaluation; null: emoji for the embedded teachers, else none"
    )
    protocol_prompts: str | None = Field(
        default=None, description="file or folder of the protocol's prompts; null: its own source"
    )
    reference: str | None = Field(default=None, description="statistics (.npz) or folder of reference pictures")
    metrics: list[str] = Field(default_factory=list, description="empty: the protocol's default metrics")
    num_evaluated: int = Field(default=0, ge=0, description="prompts evaluated at the end; 0: no evaluation")
    with_coverage: bool = Field(default=True, description="measure emoji coverage: 512 more pictures per row")
    evaluated_steps: list[Annotated[int, Field(ge=1, le=8)]] = Field(
        default_factory=list, description="steps at which the student is evaluated; empty: method.num_steps"
    )


class TrackConfig(Section):
    """Where curves go, beside metrics.jsonl."""

    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)


class ExportConfig(Section):
    """What is written at the end."""

    formats: list[Literal["diffusers", "kohya", "pipeline"]] = Field(
        default_factory=lambda: ["diffusers", "kohya"],
        description="LoRA for diffusers, LoRA for ComfyUI, pipeline folder; full roles always give the folder",
    )
    name: str | None = Field(default=None, description="file name of the artefact; null: the run folder's")


class Recipe(Section):
    """A whole run."""

    model: ModelConfig
    roles: Roles = Roles()
    method: dict[str, Any] = Field(description="`name` and the method's own options")
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    track: TrackConfig = TrackConfig()
    export: ExportConfig = ExportConfig()

    @property
    def distiller_class(self) -> type[Distiller]:
        """The method's class."""
        return METHODS[self.method["name"]]

    @property
    def distiller_config(self) -> DistillerConfig:
        """The method's options."""
        options = {key: value for key, value in self.method.items() if key != "name"}
        return options_of(self.method["name"])(**options)

    def dump(self) -> str:
        """The recipe as YAML with every default written out."""
        document = self.model_dump(mode="json")
        document["method"] = {"name": self.method["name"], **self.distiller_config.model_dump(mode="json")}
        return yaml.safe_dump(document, sort_keys=False, width=110)

    def digest(self) -> str:
        """A short hash of the resolved recipe."""
        return hashlib.sha256(self.dump().encode()).hexdigest()[:16]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides.

    Raises:
        UserError: the file is missing or no YAML, or a key or value is wrong; the message names it and the fix.
    """
    file = resolve_path(path)
    if not file.is_file():
        raise UserError(f"there is no recipe '{path}'; `ls recipes/` shows the ones that ship")
    try:
        document = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no recipe: it needs at least the keys 'model' and 'method'")
    for override in overrides:
        apply_override(document, override)
    return parse_recipe(document)


def parse_recipe(document: Mapping[str, Any]) -> Recipe:
    """A recipe from a nested mapping, with one-line errors."""
    try:
        recipe = Recipe.model_validate(document)
        recipe = recipe.model_copy(update={"method": without_retired_options(recipe.method)})
    except ValidationError as error:
        raise UserError(first_problem(error, Recipe)) from error
    name = recipe.method.get("name")
    if name not in ENTRIES:
        raise UserError(
            f"method.name: unknown method '{name}'{did_you_mean(str(name), ENTRIES)}; `stepdistill methods` lists them"
        )
    try:
        config = recipe.distiller_config
    except ValidationError as error:
        raise UserError("method." + first_problem(error, options_of(name))) from error
    if config.num_experts > 1 and recipe.roles.mode == "full":
        raise UserError(
            f"roles.mode=full: the {config.num_experts} experts of {name} are exported as LoRAs that a stock pipeline switches; "
            "use roles.mode=shared, with a higher roles.rank where an adapter is too small"
        )
    return recipe


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in a nested mapping; the value is read as YAML.

    >>> document = {"train": {"seed": 0}}
    >>> apply_override(document, "train.seed=7"); apply_override(document, "data.prompts=cats.txt"); document
    {'train': {'seed': 7}, 'data': {'prompts': 'cats.txt'}}
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"'{override}' is not an override; write key.sub=value, for example train.max_train_steps=100")
    *parents, leaf = key.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"'{override}': '{parent}' holds a value and has no keys below it")
    node[leaf] = yaml.safe_load(value)


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first fault of a validation: where, what, and the nearest known key."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return f"{where}: unknown key{did_you_mean(path[-1], known)}; known keys: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where}: this key is required"
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        annotation = model.model_fields[name].annotation
        options = get_args(annotation) or (annotation,)  # of `Model | None` the model
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if len(models) != 1:
            return []
        model = models[0]
    return list(model.model_fields)
