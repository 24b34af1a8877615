"""Every mistake a user can make, as one tree.

    InvatlasError
    ├── DataError            the counts or the obs columns cannot be used
    │   ├── CountsError      negative, fractional, missing or empty counts
    │   ├── CovariateError   a column is absent, constant or unusable
    │   │   └── ConfoundingError   values occur only together, and strict was asked for
    │   └── GeneError        genes are absent, duplicated or too few in common
    ├── SettingsError        a setting is unknown or out of range
    ├── TrainingError        the objective stopped being a finite number
    └── StorageError         an atlas cannot be written or read

A message says what is wrong, what was found, and what is allowed.
"""

from __future__ import annotations


class StudyWarning(UserWarning):
    """What in the cells and columns of a study calls for caution, told before it is fitted."""


class InvatlasError(Exception):
    """Anything that invatlas refuses, and says why."""


class DataError(InvatlasError, ValueError):
    """The data handed over cannot be used as they are."""


class CountsError(DataError):
    """The count matrix holds values that are no counts, or no cells."""


class CovariateError(DataError):
    """An obs column named as a covariate is absent or unusable."""


class ConfoundingError(CovariateError):
    """A biological and a technical value occur only together, or nearly."""


class GeneError(DataError):
    """The genes of the data do not fit the genes asked for."""


class SettingsError(InvatlasError, ValueError):
    """A setting is unknown, of the wrong kind or out of range."""


class TrainingError(InvatlasError, RuntimeError):
    """Training met a value it cannot continue from."""


class StorageError(InvatlasError, OSError):
    """A file cannot be written, or is not the atlas it should be."""
