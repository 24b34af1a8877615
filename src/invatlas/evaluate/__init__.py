"""Scores of an atlas: arrays in, a table out."""

from invatlas.evaluate.audit import Effort, leakage, probe_latents

__all__ = ["Effort", "leakage", "probe_latents"]
