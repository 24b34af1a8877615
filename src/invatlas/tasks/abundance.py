"""Where in z_I cells are more frequent in one condition than in another, donors as replicates.

    f_i  = (k_i + 1/2) / (n_i + 1)        k_i of a sample's n_i cells are among the K nearest
    ratio = log(mean_b f / mean_a f)       of the densities at a cell, in natural logarithms
    t    = (mean_b g - mean_a g) / sqrt(var_b g / D_b + var_a g / D_a),    g = 2 sqrt(f)

The K nearest neighbours of a cell, among all cells, take in the same volume for every sample, so
that the volume cancels. Every sample counts the same, whatever its number of cells. t is Welch's,
over samples; the square root makes the variance of a count about equal everywhere (Bartlett 1936).
The false discovery rate is that of Benjamini and Hochberg 1995 over cells.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from invatlas.atlas import Atlas
from invatlas.errors import CovariateError, SettingsError
from invatlas.tasks.samples import gather_samples

FEWEST, PER_SAMPLE = 50, 10  # neighbours


def abundance(
    atlas: Atlas,
    adata: AnnData,
    *,
    between: tuple[str, str] | None = None,
    donor: str | None = None,
    condition: str | None = None,
    cell_type: str | None = None,
    neighbours: int | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
) -> pd.DataFrame:
    """Compare the density of cells between two conditions, at every cell of either.

    Parameters
    ----------
    atlas
        A fitted atlas.
    adata
        Raw counts with the three columns in obs.
    between
        Two values of ``condition``: a, then b. Without it, its first and second in the alphabet.
    donor, condition, cell_type
        As in :func:`invatlas.donors`.
    neighbours
        K; by default 10 for each sample of a or b, and at least 50. More see smaller changes, and
        blur where they are.
    layer, gene_column
        As in :func:`invatlas.embed`.

    Returns
    -------
    DataFrame
        One row a cell of a or b, by its name: ``cell_type``, ``donor``, ``condition``,
        ``log_density_ratio`` (positive where b has more), ``standard_error`` (over samples),
        ``p_value`` and ``false_discovery_rate``; the last three are NaN where a side has one
        sample.

    Raises
    ------
    CovariateError
        If a column or one of the two conditions is absent.
    SettingsError
        If K is no number from 1 to the number of cells.
    """
    samples = gather_samples(atlas, adata, donor, condition, cell_type, layer, gene_column)
    values = sorted(samples.table["condition"].unique())
    between = between or (values[0], values[-1] if len(values) < 2 else values[1])
    if len(set(between)) < 2 or not set(between) <= set(values):
        raise CovariateError(
            f"between is {', '.join(between)}; it takes two of {', '.join(values)}."
        )
    side = samples.table["condition"].map({between[0]: 0, between[1]: 1}).to_numpy(dtype=float)
    taken = np.isfinite(side[samples.sample])
    kept = np.flatnonzero(np.isfinite(side))
    sample = np.searchsorted(kept, samples.sample[taken])
    if neighbours is None:
        neighbours = min(max(FEWEST, PER_SAMPLE * len(kept)), len(sample))
    found = compare_density(samples.z[taken], sample, side[kept] == 1, neighbours)
    table = samples.table.iloc[kept[sample]][["donor", "condition"]].reset_index(drop=True)
    kinds = np.array(samples.cell_types, dtype=object)[samples.cell_type[taken]]
    table.insert(0, "cell_type", kinds)
    return table.join(found).set_axis(adata.obs_names[samples.rows[taken]])


def compare_density(
    z: np.ndarray, sample: np.ndarray, second: np.ndarray, neighbours: int
) -> pd.DataFrame:
    """Compare as :func:`abundance`: z (cell, latent), sample (cell,), whether in b (sample,)."""
    if not 1 <= neighbours <= len(z):
        raise SettingsError(f"neighbours is {neighbours}; it takes 1 to {len(z)}, the cells.")
    near = NearestNeighbors(n_neighbors=neighbours).fit(z).kneighbors(z, return_distance=False)
    count = np.zeros((len(z), len(second)))
    np.add.at(count, (np.arange(len(z))[:, None], sample[near]), 1)
    f = (count + 0.5) / (np.bincount(sample, minlength=len(second)) + 1)
    a, b = f[:, ~second], f[:, second]
    found = pd.DataFrame({"log_density_ratio": np.log(b.mean(1) / a.mean(1))})
    if min(a.shape[1], b.shape[1]) < 2:
        return found.assign(standard_error=np.nan, p_value=np.nan, false_discovery_rate=np.nan)
    relative = [side.var(1, ddof=1) / side.shape[1] / side.mean(1) ** 2 for side in (a, b)]
    p = stats.ttest_ind(2 * np.sqrt(b), 2 * np.sqrt(a), axis=1, equal_var=False).pvalue
    p = np.nan_to_num(p, nan=1.0)
    return found.assign(
        standard_error=np.sqrt(relative[0] + relative[1]),
        p_value=p,
        false_discovery_rate=stats.false_discovery_control(p),
    )
