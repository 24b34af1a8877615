"""Figures on matplotlib axes: what they show of a table, and which tables they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import invatlas as ia
from invatlas.errors import CovariateError, DataError

Maker = Callable[..., Any]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Draw without a screen, and close what was drawn."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    yield
    pyplot.close("all")


def make_genes(change: list[float], rate: list[float]) -> pd.DataFrame:
    index = [f"gene {k}" for k in range(len(change))]
    return pd.DataFrame({"log2_fold_change": change, "false_discovery_rate": rate}, index)


def list_key(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def list_rows(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def list_points(ax: Any) -> list[list[float]]:
    return [point for drawn in ax.collections for point in np.asarray(drawn.get_offsets()).tolist()]


def test_latents_show_every_cell_in_the_colour_of_its_category(latents: Maker) -> None:
    cells = latents(300)
    ax = ia.pl.latents(cells, "cell_type")
    drawn = [point for point in list_points(ax) if np.isfinite(point).all()]
    assert len(drawn) == 300
    missing = cells.obs["cell_type"].isna()
    np.testing.assert_allclose(
        sorted(np.asarray(ax.collections[0].get_offsets()).tolist()),
        sorted(cells.obsm["X_invariant_umap"][missing].tolist()),
    )
    assert list_key(ax)[0] == cells.obs["cell_type"].value_counts().index[0]
    table = pd.DataFrame({"x": [0.0, 1], "y": [2.0, 3], "age": [1, 2]})
    assert sorted(p for p in list_points(ia.pl.latents(table, "age")) if np.isfinite(p).all()) == [
        [0, 2],
        [1, 3],
    ]


def test_latents_refuse_what_is_not_there(latents: Maker) -> None:
    cells = latents(20, spurious=0)
    with pytest.raises(CovariateError, match="no column 'absent' to colour by; there are"):
        ia.pl.latents(cells, "absent")
    with pytest.raises(DataError, match="no obsm 'X_spurious_umap'; there are"):
        ia.pl.latents(cells, "donor", which="spurious")
    with pytest.raises(DataError, match="which is 'both'; allowed are invariant, spurious"):
        ia.pl.latents(cells, "donor", which="both")


def test_numbers_are_drawn_on_a_ramp(latents: Maker) -> None:
    cells = latents(50)
    cells.obs["age"] = np.linspace(20, 90, 50)
    ax = ia.pl.latents(cells, "age")
    assert ax.get_legend() is None and len(ax.figure.axes) == 2
    assert ax.collections[0].get_clim() == (20, 90)


def test_history_of_an_atlas_or_a_table(history: Maker) -> None:
    table = history(12)
    ax = ia.pl.history(SimpleNamespace(history=table), "dependence")
    for line, kind in zip(ax.lines, ("train", "held_out"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), table[f"{kind}_dependence"])
    assert len(ia.pl.history(table).lines) == 2
    with pytest.raises(DataError, match="the table lacks train_absent; it has epoch"):
        ia.pl.history(table, "absent")


def test_leakage_has_a_row_for_each_covariate_and_latent(audit: Maker) -> None:
    ax = ia.pl.leakage(audit())
    assert list_rows(ax)[:2] == ["cell_type, z_I", "cell_type, z_S"]
    assert len(list_rows(ax)) == 6, "the batch has no answer"
    assert len(list_points(ax)) == 6 * 3
    with pytest.raises(DataError, match="no row"):
        ia.pl.leakage(audit().assign(score=np.nan))


def test_confusion_shows_shares_of_the_truth() -> None:
    truth = pd.Series(["a", "a", "a", "a", "b", None])
    called = pd.Series(["a", "a", "a", "c", None, "a"])
    ax = ia.pl.confusion(truth, called)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0, 0.25, 0], [0, 0, 0, 1]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c", "no call"]
    with pytest.raises(DataError, match="6 true labels and 5 calls"):
        ia.pl.confusion(truth, called[:5])


def test_volcano_counts_both_sides_and_names_the_surest() -> None:
    table = make_genes([2, -3, 0.1, 1, np.nan], [1e-9, 1e-4, 0.9, 0, 0.5])
    ax = ia.pl.volcano(table, label=2)
    assert list_key(ax) == ["not clear: 1", "higher: 2", "lower: 1"]
    assert ia.pl.volcano(table, of="stim over ctrl").get_xlabel().endswith(", stim over ctrl")
    named = {note.get_text() for note in ax.texts}
    assert named == {"gene 0", "gene 1"}, "a name lies on no other"
    assert np.isfinite(list_points(ax)).all(), "a rate of 0 has a place"
    sure = ia.pl.volcano(make_genes([1, 0.1], [0, 0.5])).collections[1].get_offsets()[0]
    assert sure[1] == pytest.approx(-np.log10(0.005)), "beyond the line"
    assert ia.pl.volcano(table).get_ylabel() == "-log10 false discovery rate (0 drawn at 9.0)"
    positive = ia.pl.volcano(make_genes([1, 2], [1e-9, 0.5]))
    assert positive.get_ylabel() == "-log10 false discovery rate"
    with pytest.raises(DataError, match="lacks false_discovery_rate"):
        ia.pl.volcano(table[["log2_fold_change"]])


def test_counterfactual_lists_the_genes_that_change_most() -> None:
    mean = np.array([1.0, 8.0, 3.0])
    table = pd.DataFrame(
        {
            "counterfactual_mean": mean,
            "counterfactual_mean_low": mean / 2,
            "counterfactual_mean_high": mean * 2,
        },
        index=["a", "b", "c"],
    )
    assert list_rows(ia.pl.counterfactual(table)) == ["b", "c", "a"]
    measured = pd.Series({"a": 9.0, "b": 8.0, "c": 3.0})
    assert list_rows(ia.pl.counterfactual(table.assign(measured_mean=measured)))[0] == "a"
    ax = ia.pl.counterfactual(table, measured, most=1)
    assert list_rows(ax) == ["a"]
    low, high = ax.collections[0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((np.log10(0.6), np.log10(2.1)))


def test_design_names_combinations_in_their_order() -> None:
    table = pd.DataFrame({"rank": [1, 2], "cell_type": ["B", "T"], "condition": ["x", "y$1$"]})
    table = table.assign(cells=9, donors=1, uncertainty=1.0, alone=[2, 1], information=[2, 0.5])
    ax = ia.pl.design(table.assign(total=[2, 2.5]))
    assert list_rows(ax) == ["B | x", r"T | y\$1\$"]
    assert [bar.get_width() for bar in ax.patches] == [2, 0.5]


def test_donors_ring_the_outlying_ones() -> None:
    strata = pd.DataFrame({"sample": ["d1", "d2", "d3"], "condition": ["x", "y", "y"]})
    strata = strata.assign(stratum=[1, 1, 2], axis_1=[0.0, 1, 2], axis_2=[0.0, 1, 4])
    table = pd.DataFrame({"sample": ["d1", "d3"], "outlying": [False, True]})
    ax = ia.pl.donors(SimpleNamespace(strata=strata, table=table))
    assert list_key(ax) == ["x", "y, stratum 1", "y, stratum 2"]
    assert list_points(ax).count([2, 4]) == 2 and list_points(ax).count([0, 0]) == 1
    assert len(list_points(ia.pl.donors(strata))) == 3


def test_states_show_shares_and_who_has_more() -> None:
    shares = pd.DataFrame({"state": ["s1", "s1", "s2"], "disease": ["x", "y z", "x"]})
    shares = shares.assign(share=[0.1, 0.2, 0.3], reference_share=[0.4, 0.5, 0.6])
    table = pd.DataFrame({"state": ["s1", "s2"], "diseases": ["y z", ""]})
    ax = ia.pl.states(SimpleNamespace(shares=shares, table=table))
    assert list_rows(ax) == ["s1, x", "s1, y z", "s2, x"]
    assert list_key(ax) == ["reference", "disease", "has more"]
    named = np.asarray(ax.collections[-1].get_offsets()).tolist()
    assert named == [[0.2, 1]], "the only one that is named"
    assert list_key(ia.pl.states(shares)) == ["reference", "disease"]
    with pytest.raises(DataError, match=r"lacks reference_share.*ia\.states"):
        ia.pl.states(shares.drop(columns="reference_share"))


def test_explain_lists_the_genes_moved_most() -> None:
    shifts = pd.DataFrame({"shift": [0.1, -0.5, 0.3]}, index=["a", "b", "c"])
    latents = pd.DataFrame({"z_I 1": [1.0, 0, 2]}, index=["a", "b", "c"])
    found = SimpleNamespace(shifts=shifts, latents=latents)
    ax = ia.pl.explain(found, most=2)
    assert list_rows(ax) == ["b", "c"] and [bar.get_width() for bar in ax.patches] == [-0.5, 0.3]
    assert list_rows(ia.pl.explain(found, "z_I 1")) == ["c", "a", "b"]
    with pytest.raises(DataError, match="of is 'z'; it takes one of shift, z_I 1"):
        ia.pl.explain(found, "z")


def test_abundance_shows_cells_by_type_and_what_is_clear() -> None:
    table = pd.DataFrame({"cell_type": ["B", "A", "A"], "log_density_ratio": [1.0, -2, 0.5]})
    ax = ia.pl.abundance(table.assign(false_discovery_rate=[0.01, 0.02, np.nan]))
    assert list_rows(ax) == ["A", "B"]
    drawn = [np.asarray(dots.get_offsets()) for dots in ax.collections]
    shown = [(x, round(y)) for dots in drawn for x, y in dots.tolist() if np.isfinite(x)]
    assert shown == [(0.5, 0), (1.0, 1), (-2.0, 0)], "not clear, more frequent, less frequent"
    assert ax.get_xlabel().endswith("density in the second over the first")
    table.attrs["between"] = ["ctrl", "stim"]
    named = ia.pl.abundance(table.assign(false_discovery_rate=0.01))
    assert named.get_xlabel() == "natural log of the density in stim over ctrl"


@pytest.mark.parametrize("assumed", ["survival", "strength"])
def test_sensitivity_over_what_is_assumed(assumed: str) -> None:
    curve = pd.DataFrame({assumed: [0.5, 1, 2], "log_ratio": [1.0, 0, -1], "standard_error": 0.1})
    ax = ia.pl.sensitivity(SimpleNamespace(curve=curve))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), curve[[assumed, "log_ratio"]])
    assert ax.get_xscale() == ("log" if assumed == "survival" else "linear")


def test_axes_of_ones_own_are_drawn_on() -> None:
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert ia.pl.volcano(make_genes([1.0], [0.01]), ax=ax) is ax
