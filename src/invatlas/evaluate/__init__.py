"""Scores of an atlas: arrays in, a table out."""

from invatlas.evaluate.audit import Effort, leakage, probe_latents
from invatlas.evaluate.consensus import fit_seeds
from invatlas.evaluate.identifiability import agreement, identifiability
from invatlas.evaluate.unmixing import unmix

__all__ = [
    "Effort",
    "agreement",
    "fit_seeds",
    "identifiability",
    "leakage",
    "probe_latents",
    "unmix",
]
