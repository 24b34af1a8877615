"""Figures of answers on matplotlib axes, as `ia.pl`: tables in, axes out; nothing is estimated."""

from invatlas.report.figures.answers import (
    counterfactual,
    design,
    donors,
    sensitivity,
    volcano,
)
from invatlas.report.figures.biology import abundance, explain, states
from invatlas.report.figures.fits import confusion, history, latents, leakage

__all__ = [
    "abundance",
    "confusion",
    "counterfactual",
    "design",
    "donors",
    "explain",
    "history",
    "latents",
    "leakage",
    "sensitivity",
    "states",
    "volcano",
]
