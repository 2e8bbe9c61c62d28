"""stepdistill: distil a diffusers pipeline to 1-8 steps, export what stock diffusers loads, and measure it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "stepdistill.denoisers": ("Denoised", "Denoiser", "Roles", "load_teacher"),
    "stepdistill.conditioning": ("Conditioning",),
    "stepdistill.schedule": ("EDMSchedule", "FlowSchedule", "NoiseSchedule", "TrigSchedule", "VPSchedule"),
    "stepdistill.guidance": ("Guidance",),
    "stepdistill.rng": ("RandomStream",),
    "stepdistill.sampler": ("StudentSampler",),
    "stepdistill.distillers": ("METHODS",),
    "stepdistill.distillers.base": ("Batch", "Distiller", "Losses"),
    "stepdistill.distillers.distribution.dmd": ("DMD",),
    "stepdistill.distillers.consistency.lcm": ("LCM",),
    "stepdistill.distillers.consistency.sana_sprint": ("SANASprint",),
    "stepdistill.distillers.consistency.scm": ("SCM",),
    "stepdistill.distillers.consistency.tbcm": ("TBCM",),
    "stepdistill.distillers.distribution.dmd2": ("DMD2",),
    "stepdistill.distillers.distribution.phased_dmd": ("PhasedDMD",),
    "stepdistill.distillers.distribution.swiftbrush": ("SwiftBrush",),
    "stepdistill.distillers.preference.pso": ("PSO",),
    "stepdistill.training.recipe": ("TrainConfig", "ValidationConfig", "load_recipe"),
    "stepdistill.training.trainer": ("Trainer",),
    "stepdistill.training.run": ("distill",),
    "stepdistill.export": ("apply_sampler", "export"),
    "stepdistill.rewards": ("load_reward",),
    "stepdistill.errors": ("UserError",),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
_SUBMODULES = ("testing", "metrics")

__all__ = [*_MODULE_OF, *_SUBMODULES]

if TYPE_CHECKING:
    from stepdistill import metrics as metrics
    from stepdistill import testing as testing
    from stepdistill.conditioning import Conditioning as Conditioning
    from stepdistill.denoisers import Denoised as Denoised
    from stepdistill.denoisers import Denoiser as Denoiser
    from stepdistill.denoisers import Roles as Roles
    from stepdistill.denoisers import load_teacher as load_teacher
    from stepdistill.distillers import METHODS as METHODS
    from stepdistill.distillers.base import Batch as Batch
    from stepdistill.distillers.base import Distiller as Distiller
    from stepdistill.distillers.base import Losses as Losses
    from stepdistill.distillers.consistency.lcm import LCM as LCM
    from stepdistill.distillers.consistency.sana_sprint import SANASprint as SANASprint
    from stepdistill.distillers.consistency.scm import SCM as SCM
    from stepdistill.distillers.consistency.tbcm import TBCM as TBCM
    from stepdistill.distillers.distribution.dmd import DMD as DMD
    from stepdistill.distillers.distribution.dmd2 import DMD2 as DMD2
    from stepdistill.distillers.distribution.phased_dmd import PhasedDMD as PhasedDMD
    from stepdistill.distillers.distribution.swiftbrush import SwiftBrush as SwiftBrush
    from stepdistill.distillers.preference.pso import PSO as PSO
    from stepdistill.errors import UserError as UserError
    from stepdistill.export import apply_sampler as apply_sampler
    from stepdistill.export import export as export
    from stepdistill.guidance import Guidance as Guidance
    from stepdistill.rewards import load_reward as load_reward
    from stepdistill.rng import RandomStream as RandomStream
    from stepdistill.sampler import StudentSampler as StudentSampler
    from stepdistill.schedule import EDMSchedule as EDMSchedule
    from stepdistill.schedule import FlowSchedule as FlowSchedule
    from stepdistill.schedule import NoiseSchedule as NoiseSchedule
    from stepdistill.schedule import TrigSchedule as TrigSchedule
    from stepdistill.schedule import VPSchedule as VPSchedule
    from stepdistill.training.recipe import TrainConfig as TrainConfig
    from stepdistill.training.recipe import ValidationConfig as ValidationConfig
    from stepdistill.training.recipe import load_recipe as load_recipe
    from stepdistill.training.run import distill as distill
    from stepdistill.training.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"stepdistill.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'stepdistill' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
