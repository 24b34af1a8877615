"""Which values occur only together: designs made by hand, and the real ones."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import invatlas as ia
import invatlas.data.confounding
from invatlas.data.confounding import check_design
from invatlas.data.findings import Finding
from invatlas.errors import CovariateError

Rows = list[tuple[Any, ...]]


def design(columns: str, rows: Rows) -> pd.DataFrame:
    """Give obs: each row is a value of each column and its number of cells."""
    names = columns.split()
    values = [row[:-1] for row in rows for _ in range(row[-1])]
    return pd.DataFrame(values, [f"c{i}" for i in range(len(values))], names)


def check(columns: str, rows: Rows, technical: str = "batch") -> list[Finding]:
    obs = design(columns, rows)
    biological = [name for name in obs.columns if name not in technical.split()]
    return check_design(obs, biological, technical.split())


def kinds(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.biological, finding.beside) for finding in findings]


FULL: Rows = [("ctrl", "1", 40), ("stim", "2", 1760)]
NEAR: Rows = [("ctrl", "1", 97), ("ctrl", "2", 3), ("stim", "1", 2), ("stim", "2", 98)]
CROSSED: Rows = [("ctrl", "1", 30), ("ctrl", "2", 50), ("stim", "1", 45), ("stim", "2", 20)]
NESTED: Rows = [(("ill", "well")[i % 2], f"d{i}", 20 + i) for i in range(8)]


def test_full_confounding_names_the_question() -> None:
    (finding,) = check("condition batch", FULL)
    assert finding.kind == "full" and finding.alarm and finding.cells == 1800
    assert [(m.values, m.beside, m.shared) for m in finding.matches] == [
        (("stim",), ("2",), 1760),
        (("ctrl",), ("1",), 40),
    ]
    assert finding.sentence == (
        "What condition=stim does cannot be told from what batch=2 does: all 1,760 cells of stim "
        "have batch=2, and no others have. So it is with ctrl and 1 (40 cells)."
    )


def test_near_confounding_gives_shares() -> None:
    (finding,) = check("condition batch", NEAR)
    assert finding.kind == "near" and finding.alarm
    assert 0.8 < finding.matches[0].explained < 1
    assert "What condition=ctrl does can hardly be told from what batch=1 does" in finding.sentence
    assert "97.0 % of the 100 cells of ctrl" in finding.sentence
    assert "97.9 % of the cells that have" in finding.sentence


def test_a_second_batch_with_one_cell_makes_no_nesting() -> None:
    assert kinds(check("condition batch", [*FULL, ("stim", "3", 1)])) == [
        ("full", "condition", "batch"),
        ("near", "condition", "batch"),
    ]


def test_crossed_values_are_no_finding() -> None:
    assert check("condition batch", CROSSED) == []


def test_nested_donors_are_a_note() -> None:
    (finding,) = check("disease donor", NESTED, "donor")
    assert finding.kind == "nested" and not finding.alarm
    assert "each of which has one disease alone: well has 4, ill has 4" in finding.sentence
    (stray,) = check("disease donor", [*NESTED, ("ill", "d1", 1)], "donor")
    assert stray.kind == "nested" and "nearly one disease" in stray.sentence


def test_a_disease_of_one_donor_is_an_alarm_beside_nested_ones() -> None:
    found = check("disease donor", [*NESTED, ("rare", "d8", 50)], "donor")
    assert kinds(found) == [("full", "disease", "donor"), ("nested", "disease", "donor")]
    assert found[0].matches[0].values == ("rare",) and len(found[0].matches) == 1
    few = check("disease donor", [*NESTED[::2], ("rare", "d8", 50)], "donor")
    assert kinds(few) == [("full", "disease", "donor")], "one alarm says it all"


def test_values_that_share_a_batch_are_apart_from_others_together() -> None:
    (finding,) = check("disease batch", [("a", "1", 30), ("b", "1", 30), ("c", "2", 50)])
    assert [match.values for match in finding.matches] == [("a", "b"), ("c",)]
    assert finding.sentence.startswith("What disease=a, b have in common cannot be told from")


def test_a_value_seen_in_one_shared_batch_is_a_note() -> None:
    (finding,) = check("disease batch", [*CROSSED, ("rare", "2", 9)])
    assert finding.kind == "single" and not finding.alarm
    assert "all its 9 cells have batch=2" in finding.sentence


def test_biological_values_that_never_part_are_a_note() -> None:
    rows: Rows = [("B", "ill", 50), ("B", "well", 40), ("pDC", "ill", 30), ("T", "well", 20)]
    (finding,) = check("cell_type disease", rows, "")
    assert finding.kind == "together" and not finding.alarm
    assert "What disease does to cell_type=pDC cannot be told" in finding.sentence
    assert "T at well (20 cells)" in finding.sentence
    (mutual,) = check("sex disease", [("f", "ill", 30), ("m", "well", 40)], "")
    assert (mutual.biological, mutual.beside) == ("sex", "disease"), "said once, not both ways"


def test_the_example_in_the_docstring_is_true() -> None:
    found = doctest.testmod(invatlas.data.confounding)
    assert found.attempted and not found.failed


def test_three_columns_are_compared_in_pairs_alarms_first() -> None:
    rows: Rows = [
        (disease, f"{disease}{i}", f"run of {disease}", 20)
        for disease in ("ill", "well")
        for i in range(3)
    ]
    assert kinds(check("disease donor batch", rows, "donor batch")) == [
        ("full", "disease", "batch"),
        ("nested", "disease", "donor"),
    ]


def test_cells_without_a_value_or_with_a_coarse_one_count_for_nothing() -> None:
    obs = design("condition batch", [*FULL, ("stim", None, 50), (None, "1", 30), ("any", "1", 30)])
    found = check_design(obs, ["condition"], ["batch"], {"condition": {"any": ["ctrl", "stim"]}})
    assert kinds(found) == [("full", "condition", "batch")] and found[0].cells == 1800
    never = design("condition batch", [("stim", None, 50), ("ctrl", "1", 30), ("ctrl", "2", 30)])
    assert check_design(never, ["condition"], ["batch"]) == []
    rows = [("stim", None, 50), ("ctrl", None, 50), (None, "1", 30), (None, "2", 30)]
    assert check_design(design("condition batch", rows), ["condition"], ["batch"]) == []


def test_many_values_make_few_short_rows() -> None:
    obs = design("disease type donor", [(f"s{i % 40}", f"t{i}", f"d{i}", 6) for i in range(400)])
    frame = ia.confounding(AnnData(obs=obs), ["disease", "type"], ["donor"])
    assert len(frame) <= 5
    assert frame["sentence"].str.len().max() < 450 and frame["values"].str.len().max() < 250
    assert "and 37 more" in frame["values"].iloc[1]


def test_the_table_has_its_columns_also_where_nothing_was_found() -> None:
    columns = "kind alarm biological beside values cells explained sentence".split()
    for rows in (CROSSED, FULL):
        adata = AnnData(obs=design("condition batch", rows))
        before = adata.obs.copy()
        frame = ia.confounding(adata, ["condition"], ["batch"])
        assert list(frame) == columns and len(frame) == (rows is FULL)
        pd.testing.assert_frame_equal(adata.obs, before)
    with pytest.raises(CovariateError, match="no column 'run'"):
        ia.confounding(adata, ["condition"], ["run"])


counts = st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=2, max_size=4)


@settings(max_examples=40, deadline=None)
@given(counts, st.permutations("abcdefg"), st.integers(0, 99))
def test_order_of_cells_and_names_of_values_change_nothing(
    table: list, names: list[str], seed: int
) -> None:
    rows = [(f"d{i}", f"e{j}", n) for i, r in enumerate(table) for j, n in enumerate(r)]
    obs = design("d e", rows)
    if obs["d"].nunique() < 2 or obs["e"].nunique() < 2 or len(obs) < 10:
        return
    new = dict(zip(sorted({*obs["d"], *obs["e"]}), names, strict=False))
    other = obs.iloc[np.random.default_rng(seed).permutation(len(obs))].map(new.get)

    def tell(found: list[Finding], names: dict[str, str]) -> set:
        return {
            (
                f.kind,
                *(frozenset(names[v] for v in part) for part in (m.values, m.beside)),
                *(m.cells, m.beside_cells, m.shared, round(m.explained, 9)),
            )
            for f in found
            for m in f.matches
        }

    same = {name: name for name in new.values()}
    found = check_design(obs, ["d"], ["e"])
    assert tell(found, new) == tell(check_design(other, ["d"], ["e"]), same)
    assert [Finding.from_json(json.loads(json.dumps(f.to_json()))) for f in found] == found


@pytest.mark.real
def test_kang_runs_are_confounded_with_condition_and_donors_are_not(real_data: Path) -> None:
    if not (real_data / "kang2018_ifnb.h5ad").exists():
        pytest.skip("needs kang2018_ifnb.h5ad in the folder of the real data")
    kang = ad.read_h5ad(real_data / "kang2018_ifnb.h5ad")
    assert ia.confounding(kang, ["cell_type", "condition"], ["donor"]).empty
    frame = ia.confounding(kang, ["cell_type", "condition"], ["donor", "batch"])
    (row,) = frame.to_dict("records")
    assert (row["kind"], row["biological"], row["beside"]) == ("full", "condition", "batch")
    assert "condition=stim" in row["sentence"] and "1,810 cells" in row["sentence"]
    assert row["cells"] == kang.n_obs and math.isclose(row["explained"], 1.0)


@pytest.mark.real
def test_the_63_donors_of_pancreas_are_nested(real_data: Path) -> None:
    if not (real_data / "pancreas_5tech.h5ad").exists():
        pytest.skip("needs pancreas_5tech.h5ad in the folder of the real data")
    cells = ad.read_h5ad(real_data / "pancreas_5tech.h5ad")
    frame = ia.confounding(cells, ["cell_type", "condition"], ["technology", "donor"])
    assert not frame["alarm"].any()
    nested = frame[frame["kind"] == "nested"].iloc[0]
    assert nested["beside"] == "donor" and "T2D has 4" in nested["sentence"]
    assert np.isfinite(frame["explained"]).all() and len(frame) < 6
