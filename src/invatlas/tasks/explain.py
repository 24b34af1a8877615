"""Which genes a latent moves, and which ones the shift from one value to another.

    a(z)       = log softmax f(z, z_S)            f the decoder, z_S the mean of its priors
    J_gk       = mean_d da_g / dz_k s_k           at z = m_d, the prior means, weighted by p(d)
    change_g   = a_g(m_d') - a_g(m_d)             d' differs from d in one value
    change_gk  = (m_d'k - m_dk) int_0^1 da_g / dz_k (m_d + t (m_d' - m_d)) dt

J is the Jacobian in natural logarithms of expression for one standard deviation s_k of the latent
over the whole prior. change_gk are integrated gradients (Sundararajan, Taly and Yan 2017, ICML);
they sum over the latents to change_g, which is how much of it each latent carries. With a Gaussian
likelihood a is the decoder's output itself.

Gene sets are scored by a univariate linear model of a gene's value on its membership (as in
decoupler, Badia-i-Mompel et al. 2022, Bioinformatics Advances 2): the t of the slope. It
takes genes as independent, which those of a set are not: p-values rank sets, and are smaller than
they ought to be (Wu and Smyth 2012, Nucleic Acids Research 40).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from invatlas.atlas import Atlas, check_atlas
from invatlas.data.covariates import Covariate
from invatlas.errors import CovariateError, DataError, GeneError
from invatlas.wording import Outlined

STEPS = 16  # of the integral, Gauss-Legendre
FEWEST_GENES = 5
MOST_POINTS = 64  # combinations that Jacobians are taken at


@dataclass(frozen=True, repr=False)
class Explained(Outlined):
    """What moves which gene.

    Attributes
    ----------
    latents
        J (gene, latent), columns ``z_I 1``, ``z_I 2``, ...
    shifts
        change (gene, shift): one column for each value against the other one, the mean over the
        combinations of the other covariates, named ``condition: stim against ctrl``; and, where
        there is another biological covariate, one for each of its values (the first such), named
        ``condition: stim against ctrl in B cells``.
    carriers
        Root mean square of change_gk over genes, (latent, shift), over the sum of its column: how
        much of a shift each latent carries.
    gene_sets
        One row a gene set and column of ``latents`` or ``shifts``: ``of``, ``gene_set``,
        ``genes``, ``t``, ``p_value``, ``false_discovery_rate`` (within ``of``), best first; empty
        without gene sets.
    cells
        Fitted cells behind each shift (shift, side): ``cells`` of the value and ``cells_against``
        of the other one; about so many where labels are missing or coarse. Of few cells the prior
        knows little; of none it is a sum of what the values do elsewhere.
    """

    latents: pd.DataFrame
    shifts: pd.DataFrame
    carriers: pd.DataFrame
    gene_sets: pd.DataFrame
    cells: pd.DataFrame


def explain(
    atlas: Atlas,
    *,
    covariate: str | None = None,
    against: str | None = None,
    gene_sets: str | Path | Mapping[str, Sequence[str]] | None = None,
) -> Explained:
    """Say which genes each latent of z_I and each shift of its prior moves.

    How much z_I and z_S tell of each covariate is for :func:`invatlas.evaluate.leakage` to say.

    Parameters
    ----------
    atlas
        A fitted atlas.
    covariate
        Biological covariate whose shifts are wanted; by default the last one with categories.
    against
        Value that its other values are held against; by default ``ctrl``, ``control``, ``healthy``
        or ``normal`` if there is one, else the first.
    gene_sets
        A gmt file (name, description, genes, by tabs), or lists of genes by name. Nothing is
        downloaded.

    Returns
    -------
    Explained

    Raises
    ------
    CovariateError
        If there is no such covariate or value.
    DataError, GeneError
        If the gmt file cannot be read, or no set has 5 genes of the atlas.
    """
    check_atlas(atlas)
    names = [c.name for c in atlas.schema.called]
    if covariate is not None and covariate not in names:
        raise CovariateError(f"covariate is {covariate!r}; it takes one of {', '.join(names)}.")
    column = [c.name for c in atlas.schema.biological].index(covariate or names[-1])
    moved = atlas.schema.biological[column]
    base = _choose_base(moved, against)
    if isinstance(gene_sets, str | Path):
        gene_sets = read_gene_sets(Path(gene_sets))
    sets = dict(gene_sets or {})
    express = express_latents(atlas)
    genes = pd.Index(atlas.genes, name="gene")
    slopes, variance = average_slopes(atlas, express)
    latents = pd.DataFrame((slopes * variance.sqrt()).numpy(), genes)
    latents.columns = [f"z_I {k + 1}" for k in range(latents.shape[1])]
    shifts, carriers, cells = _follow_shifts(atlas, express, column, base)
    shifts = shifts.set_axis(genes)
    carriers = carriers.set_axis(latents.columns)
    scored = score_gene_sets(pd.concat([latents, shifts], axis=1), sets) if sets else _NO_SETS
    return Explained(latents, shifts, carriers, scored, cells)


_NO_SETS = pd.DataFrame(columns=["of", "gene_set", "genes", "t", "p_value", "false_discovery_rate"])


def express_latents(atlas: Atlas) -> Callable[[Tensor], Tensor]:
    """The function a, from z_I (point, latent) to log expression (point, gene)."""
    model = atlas.model
    with torch.inference_mode():
        prior = model.prior_spurious()
        z_s = torch.softmax(prior.log_weight, 0) @ prior.mean
    z_s = z_s.clone()
    unknown = torch.full((1, len(atlas.schema.technical)), -1)

    def express(z: Tensor) -> Tensor:
        both = torch.cat([z, z_s.expand(len(z), -1)], 1)
        logits: Tensor = model.decode(both, unknown.expand(len(z), -1))
        return logits if atlas.settings.likelihood == "gaussian" else torch.log_softmax(logits, 1)

    return express


def differentiate(express: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Jacobian of each point, (point, gene, latent), one latent after the other."""
    columns = []
    for k in range(z.shape[1]):
        direction = torch.zeros_like(z)
        direction[:, k] = 1
        columns.append(torch.func.jvp(express, (z,), (direction,))[1].detach())
    return torch.stack(columns, 2)


def score_gene_sets(values: pd.DataFrame, sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Score gene sets on every column of values (gene, column), genes matched without case."""
    place = pd.Index(values.index.astype(str).str.upper())
    member = {name: place.isin([str(g).upper() for g in genes]) for name, genes in sets.items()}
    member = {n: m for n, m in member.items() if FEWEST_GENES <= m.sum() < len(m) - 1}
    if not member:
        raise GeneError(
            f"None of {len(sets)} gene sets has {FEWEST_GENES} of the atlas's {len(place)} genes "
            f"({', '.join(map(str, values.index[:3]))}, ...); are they named alike?"
        )
    x = np.stack(list(member.values())).astype(float)
    x -= x.mean(1, keepdims=True)
    y = values.to_numpy(dtype=float)
    y = y - y.mean(0)
    norm = np.sqrt((x**2).sum(1))[:, None] * np.sqrt((y**2).sum(0))
    r = np.clip(x @ y / np.where(norm > 0, norm, np.inf), -1 + 1e-12, 1 - 1e-12)
    freedom = len(y) - 2
    t = r * np.sqrt(freedom / (1 - r**2))
    p = 2 * stats.t.sf(np.abs(t), freedom)
    size = [int(m.sum()) for m in member.values()]
    frames = [
        pd.DataFrame(
            {
                "of": name,
                "gene_set": list(member),
                "genes": size,
                "t": t[:, j],
                "p_value": p[:, j],
                "false_discovery_rate": stats.false_discovery_control(p[:, j]),
            }
        ).sort_values("t", key=np.abs, ascending=False, kind="stable")
        for j, name in enumerate(values.columns)
    ]
    return pd.concat(frames, ignore_index=True)


def read_gene_sets(path: Path) -> dict[str, list[str]]:
    """Read a gmt file, packed by gzip or not.

    One set a line, its name, a description and its genes, by tabs.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        raise DataError(f"There is no file {path} of gene sets.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"The gene sets {path} cannot be read: {error}.") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path} is no gmt file: it is empty.")
    if any(len(row) < 3 for row in rows):
        number = next(k for k, line in enumerate(lines, 1) if line.strip() and line.count("\t") < 2)
        raise DataError(
            f"{path} is no gmt file: line {number} has no genes; each line holds a name, a "
            "description and genes, by tabs."
        )
    names = [row[0] for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} names the set {twice[0]!r} twice; each set has a name of its own.")
    return {row[0]: [gene.strip() for gene in row[2:] if gene.strip()] for row in rows}


def _choose_base(covariate: Covariate, against: str | None) -> int:
    values = covariate.categories
    if against is not None and against not in values:
        raise CovariateError(f"against is {against!r}; it takes one of {', '.join(values)}.")
    usual = [v for v in values if v.lower() in ("ctrl", "control", "healthy", "normal")]
    return values.index(against or (usual or values)[0])


def average_slopes(atlas: Atlas, express: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of da / dz (gene, latent) and variance of z (latent,), at the commonest combinations."""
    with torch.no_grad():
        prior = atlas.model.prior_invariant()
    weight, rows = torch.softmax(prior.log_weight, 0).topk(min(MOST_POINTS, len(prior.mean)))
    weight = weight / weight.sum()
    centre = weight @ prior.mean[rows]
    within = prior.covariance()[rows].diagonal(dim1=1, dim2=2)
    variance = weight @ (within + (prior.mean[rows] - centre) ** 2)
    slopes = differentiate(express, prior.mean[rows])
    return torch.einsum("d,dgk->gk", weight, slopes), variance


def count_cells(atlas: Atlas) -> np.ndarray:
    """Fitted cells of each combination: the weights are (cells + 1) over their sum.

    Where many cells lack a label, the weights are of more cells than those with all of them, and
    what is left of a combination without cells is less than 1.
    """
    weights = atlas.model.prior_invariant.weights.double().cpu().numpy()
    total = atlas.record["labelled"]["invariant"] + len(weights)
    counts = np.asarray(np.rint(weights / weights.sum() * total), dtype=np.int64) - 1
    return counts.clip(0)


def _follow_shifts(
    atlas: Atlas, express: Callable[[Tensor], Tensor], column: int, base: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Change (gene, shift), what each latent carries of it (latent, shift), cells behind it."""
    prior = atlas.model.prior_invariant
    with torch.no_grad():
        given = prior()
    codes = prior.combinations.cpu().numpy()
    place = {tuple(row): k for k, row in enumerate(codes.tolist())}
    biological = atlas.schema.biological
    moved = biological[column]
    others = [k for k, c in enumerate(biological) if k != column and not c.knots]
    counts = count_cells(atlas)
    shifts, carriers, cells = {}, {}, {}
    for value, name in enumerate(moved.categories):
        ends = [(k, place.get((*row[:column], base, *row[column + 1 :])))
                for k, row in enumerate(codes.tolist()) if row[column] == value]  # fmt: skip
        ends = [(to, start) for to, start in ends if start is not None]
        if value == base or not ends:
            continue
        to, start = (list(side) for side in zip(*ends, strict=True))
        weight = (given.log_weight[to].exp() + given.log_weight[start].exp()).numpy()
        by_latent = integrate(express, given.mean[start], given.mean[to]).numpy()
        with torch.no_grad():
            change = (express(given.mean[to]) - express(given.mean[start])).numpy()
        title = f"{moved.name}: {name} against {moved.categories[base]}"
        groups = {title: np.ones(len(to), dtype=bool)}
        for other in others[:1]:
            for k, of in enumerate(biological[other].categories):
                groups[f"{title} in {of}"] = codes[to, other] == k
        for label, rows in groups.items():
            if rows.any():
                shifts[label] = np.average(change[rows], axis=0, weights=weight[rows])
                carried = np.average(by_latent[rows], axis=0, weights=weight[rows])
                size = np.sqrt((carried**2).mean(0))
                carriers[label] = size / max(size.sum(), 1e-12)
                cells[label] = [counts[side][rows].sum() for side in (to, start)]
    sides = ["cells", "cells_against"]
    behind = pd.DataFrame.from_dict(cells, orient="index", columns=sides).rename_axis("shift")
    return pd.DataFrame(shifts), pd.DataFrame(carriers), behind


def integrate(express: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> Tensor:
    """Integrated gradients from start to end, (point, gene, latent)."""
    places, weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros(())
    for t, w in zip((places + 1) / 2, weights / 2, strict=True):
        total = total + float(w) * differentiate(express, start + float(t) * (end - start))
    return total * (end - start)[:, None]
