"""Every choice a fit can be given, with the value it has when nobody chooses.

`docs/decisions.md` says which defaults were measured, and how well.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from invatlas.errors import SettingsError
from invatlas.wording import suggest

LIKELIHOOD_NAMES = ("negative_binomial", "poisson", "gaussian")
Kind = TypeVar("Kind")
PRIOR_NAMES = ("factorised", "low_rank", "exponential_family")


def _named(cls: type[Kind]) -> type[Kind]:
    """Answer a setting that does not exist as every other mistake."""
    make = cls.__init__

    @wraps(make)
    def start(self: Kind, *values: Any, **named: Any) -> None:
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(named) - set(known)):
            raise SettingsError(
                f"Unknown setting {', '.join(unknown)}; the settings are {', '.join(known)}."
                f"{suggest(unknown[0], known)}"
            )
        make(self, *values, **named)

    cls.__init__ = start  # type: ignore[method-assign, assignment]
    return cls


@_named
@dataclass(frozen=True)
class Settings:
    """Settings of a fit.

    Attributes
    ----------
    genes
        How many highly variable genes to model; 0 takes every gene.
    likelihood
        ``negative_binomial``, ``poisson`` or ``gaussian``.
    prior
        ``factorised``; ``low_rank``, in which latents depend on each other; or
        ``exponential_family``, in which they do so in ways that no Gaussian has.
    invariant_latents, spurious_latents
        Dimensions of z_I and z_S; z_S may have 0.
    hidden, layers, dropout
        Width and number of hidden layers in each network, and their dropout.
    input_dropout
        Share of the counted genes of a cell that the encoders are not shown while training.
    depth_noise
        Standard deviation of the natural logarithm of the factor by which the encoders are shown
        a cell deeper or shallower than it was sequenced while training.
    laboratory_noise
        Whether the encoders are shown each cell as other laboratories might have counted it, too.
    nuisance_directions
        At most how many directions of expression in which laboratories differ, whatever the
        biology, the encoder of z_I is kept from looking along; 0 for none.
    interaction_rank
        Rank of the prior's interaction between covariates, and of the dependence of latents.
    technical_in_decoder
        Whether the decoder is told the technical values too.
    divergence_weight
        Weight of both divergences from the priors against the reconstruction.
    classification_weight
        Weight of the prior's posterior as a classifier, per nat of cross entropy.
    dependence_weight
        Weight of the dependence of z_I on the technical covariates given biology.
    spurious_dependence_weight
        Weight of the dependence of z_S on biology given the technical covariates.
    shrinkage_weight
        Weight of the squared interaction in the prior means.
    epochs, minibatch_size
        None lets the number of cells decide.
    learning_rate, weight_decay, gradient_norm
        Peak step size of Adam, its decay, and the norm gradients are clipped to.
    held_out
        Share of cells (whole donors where there are at least 20) kept for early stopping.
    patience
        Epochs without improvement on held-out cells before training stops.
    spared_donors
        Share of cells, in whole donors, that a second fit spares to calibrate calls with where
        training cannot spare them itself; 0 makes no second fit and calibrates on cells drawn at
        random.
    seed
        Seed of every random choice.
    split_seed
        Seed of which cells are held out; None takes ``seed``.
    """

    genes: int = 2000
    likelihood: str = "negative_binomial"
    prior: str = "factorised"
    invariant_latents: int = 20
    spurious_latents: int = 5
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1
    input_dropout: float = 0.3
    depth_noise: float = 0.7
    laboratory_noise: bool = True
    nuisance_directions: int = 8
    interaction_rank: int = 4
    technical_in_decoder: bool = True
    divergence_weight: float = 0.1
    classification_weight: float = 100.0
    dependence_weight: float = 200.0
    spurious_dependence_weight: float = 20.0
    shrinkage_weight: float = 0.01
    epochs: int | None = None
    minibatch_size: int | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    gradient_norm: float = 10.0
    held_out: float = 0.1
    patience: int = 30
    spared_donors: float = 0.25
    seed: int = 0
    split_seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values no fit can run with."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = get_args(hints[field.name]) or (hints[field.name],)
            if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
                object.__setattr__(self, field.name, float(value))
            elif type(value) not in kinds:
                allowed = " or ".join("nothing" if k is NoneType else k.__name__ for k in kinds)
                raise SettingsError(
                    f"{field.name} is {value!r} ({type(value).__name__}); it takes {allowed}."
                )
            if field.name in _RANGES and value is not None:
                low, high = _RANGES[field.name]
                if not low <= getattr(self, field.name) <= high:
                    below = high == _MOST and value < low
                    takes = f"at least {low:g}" if below else f"{low:g} to {high:,g}"
                    raise SettingsError(f"{field.name} is {value!r}; it takes {takes}.")
        for name, choices in (("likelihood", LIKELIHOOD_NAMES), ("prior", PRIOR_NAMES)):
            if getattr(self, name) not in choices:
                raise SettingsError(
                    f"{name} is {getattr(self, name)!r}; it takes {', '.join(choices)}."
                )

    def changed(self, values: dict[str, Any]) -> Settings:
        """Return a copy with some values changed.

        Raises
        ------
        SettingsError
            If a name is no setting, or a value does not fit it.
        """
        return replace(self, **values)


_MOST = 1e9  # larger than any sensible value, and finite: an atlas is plain JSON
_RANGES: dict[str, tuple[float, float]] = {
    "genes": (0, _MOST),
    "invariant_latents": (1, 10_000),
    "spurious_latents": (0, 10_000),
    "hidden": (1, 100_000),
    "layers": (1, 100),
    "dropout": (0.0, 0.95),
    "input_dropout": (0.0, 0.95),
    "depth_noise": (0.0, 10.0),
    "nuisance_directions": (0, 1000),
    "interaction_rank": (0, 1000),
    "divergence_weight": (0.0, _MOST),
    "classification_weight": (0.0, _MOST),
    "dependence_weight": (0.0, _MOST),
    "spurious_dependence_weight": (0.0, _MOST),
    "shrinkage_weight": (0.0, _MOST),
    "epochs": (1, _MOST),
    "minibatch_size": (2, _MOST),
    "learning_rate": (1e-9, 10.0),
    "weight_decay": (0.0, 10.0),
    "gradient_norm": (1e-6, _MOST),
    "held_out": (0.0, 0.5),
    "patience": (1, _MOST),
    "spared_donors": (0.0, 0.5),
    "seed": (0, 2**32 - 1),
    "split_seed": (0, 2**32 - 1),
}


def check_settings(settings: object) -> Settings:
    """Give settings, the defaults for None, and refuse anything else, such as a dictionary.

    Raises
    ------
    SettingsError
        Unless they are Settings.
    """
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise SettingsError(
            f"settings is {settings!r:.80} ({type(settings).__name__}); it takes Settings, such as "
            "invatlas.Settings(epochs=100)."
        )
    return settings


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a run file: settings and what to fit, by name.

    Raises
    ------
    SettingsError
        If the file is absent or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML file: {error}.") from error
