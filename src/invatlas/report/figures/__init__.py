"""Figures of answers on matplotlib axes, as `ia.pl`: tables in, axes out; nothing is estimated."""

from invatlas.report.figures.answers import (
    counterfactual,
    design,
    donors,
    sensitivity,
    volcano,
)
from invatlas.report.figures.fits import confusion, history, latents, leakage

__all__ = [
    "confusion",
    "counterfactual",
    "design",
    "donors",
    "history",
    "latents",
    "leakage",
    "sensitivity",
    "volcano",
]
