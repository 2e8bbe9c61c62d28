"""Denoisers: one file per family of diffusers pipelines, and `load_teacher`."""

from __future__ import annotations

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.loading import FAMILIES, load_teacher
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.denoised import Denoised

__all__ = ["FAMILIES", "Denoised", "Denoiser", "Roles", "load_teacher"]
