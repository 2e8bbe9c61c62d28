"""One file per family of diffusers pipelines, and the function that finds the right one."""

from __future__ import annotations

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.loading import FAMILIES, load_teacher
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.denoised import Denoised

__all__ = ["FAMILIES", "Denoised", "Denoiser", "Roles", "load_teacher"]
