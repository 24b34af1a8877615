"""By which name of an atlas a gene goes: exactly, by version, by case, never across species."""

from __future__ import annotations

import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invatlas.data.gene_names import find_other_species, read_names, translate
from invatlas.data.nomenclature import Nomenclature
from invatlas.errors import GeneError

P53 = "ENSG00000141510"
MANY = [f"ENSG{i:011d}" for i in range(50)]
# what it is: the query's names, the atlas's, what the query's become
TABLE: dict[str, tuple[list[str | None], list[str], list[str | None]]] = {
    "exact": (["b", "a", "x"], ["a", "b"], ["b", "a", None]),
    "a missing name": (["a", None], ["a", "None"], ["a", None]),
    "a version too many": ([f"{P53}.12"], [P53], [P53]),
    "a version too few": ([P53], [f"{P53}.12"], [f"{P53}.12"]),
    "another version": ([f"{P53}.1"], [f"{P53}.12"], [f"{P53}.12"]),
    "two versions are one gene": ([f"{P53}.1", f"{P53}.2"], [P53], [P53, P53]),
    "exact and another version": ([P53, f"{P53}.2"], [P53], [P53, P53]),
    "a mouse id with a version": (["ENSMUSG00000064351.3"], ["ENSMUSG00000064351"], None),
    "two versions in the atlas": ([P53, f"{P53}.3"], [f"{P53}.1", f"{P53}.2"], [None, None]),
    "one of two versions": ([f"{P53}.1"], [f"{P53}.1", f"{P53}.2"], [f"{P53}.1"]),
    "the copy on Y is its own": ([f"{P53}.1_PAR_Y", f"{P53}.1"], [P53], [None, P53]),
    "the copy on Y in another version": ([f"{P53}.1_PAR_Y"], [P53, f"{P53}.2_PAR_Y"], None),
    "symbols have no versions": (
        ["AC012345.1", "HLA.A", "RP11-34P13.7"],
        ["AC012345", "HLA", "RP11-34P13", "AC012345.2"],
        [None, None, None],
    ),
    "lower for upper": (["actb", "x"], ["ACTB"], ["ACTB", None]),
    "upper for lower": (["ACTB"], ["actb"], ["actb"]),
    "reading frames": (["C1ORF112", "c2orf3"], ["C1orf112", "C2ORF3"], ["C1orf112", "C2ORF3"]),
    "ids in lower case": ([f"{P53.lower()}.4"], [f"{P53}.1"], [f"{P53}.1"]),
    "exact wins over case": (["actb", "ACTB"], ["ACTB"], [None, "ACTB"]),
    "a version wins over case": ([P53.lower(), f"{P53}.2"], [P53], [None, P53]),
    "two spellings in the query": (["actb", "aCTB"], ["ACTB"], [None, None]),
    "two spellings in the atlas": (["actb"], ["ACTB", "ActB"], [None]),
    "one spelling twice": (["actb", "actb"], ["ACTB"], ["ACTB", "ACTB"]),
    "mouse for human": (["Actb", "mt-Nd1"], ["ACTB", "MT-ND1"], [None, None]),
    "human for mouse": (["ACTB", "MT-ND1"], ["Actb", "mt-Nd1"], [None, None]),
    "a mouse gene among human ones": (["ACTB", "CD4", "Lyz"], ["ACTB", "CD4", "LYZ"], None),
}
EXPECTED = {
    "a mouse id with a version": ["ENSMUSG00000064351"],
    "the copy on Y in another version": [f"{P53}.2_PAR_Y"],
    "a mouse gene among human ones": ["ACTB", "CD4", None],
}


@pytest.mark.parametrize("case", TABLE)
def test_names_become_the_atlas_s(case: str) -> None:
    present, genes, expected = TABLE[case]
    found = translate(present, genes)
    wanted = EXPECTED[case] if expected is None else expected
    assert list(found.names) == wanted
    assert found.n_met == len({name for name in found.names if name is not None})


HUMAN = ["ACTB", "GAPDH", "CD3E", "MS4A1"]
SPECIES: dict[str, tuple[list[str], list[str], str | None]] = {
    "the same": (HUMAN, HUMAN, None),
    "lower case": ([name.lower() for name in HUMAN], HUMAN, None),
    "mouse, human": (["Actb", "Gapdh", "Cd3e"], HUMAN, r"mouse symbols.*human ones"),
    "human, mouse": (HUMAN, ["Actb", "Gapdh", "Cd3e"], r"human symbols.*mouse ones"),
    "mouse and spike-ins": (["Actb", "Gapdh", "ERCC-1"], [*HUMAN, "ERCC-1"], "mouse symbols"),
    "a mixture": ([*HUMAN, "Lyz", "Nkg7"], [*HUMAN, "LYZ", "NKG7"], None),
    "ids": (
        [f"ENSMUSG{i:011d}.1" for i in range(50)],
        MANY,
        r"mouse Ensembl ids \(ENSMUSG.*the atlas's like human ones \(ENSG0",
    ),
    "ids of a cow": ([f"ENSBTAG{i:011d}" for i in range(50)], MANY, "ENSBTAG Ensembl ids"),
    "other ids of one species": ([f"ENSG9{i:010d}" for i in range(50)], MANY, None),
    "ids of two, one of them ours": ([*MANY, *(f"ENSMUSG{i}" for i in range(80))], MANY, None),
    "zebrafish": (["actb", "gapdh", "zgc:100868", "si:ch211-1"], HUMAN, r"zebrafish.*zgc:100868"),
    "symbols for ids": (["Actb", "Gapdh"], MANY, None),
}


@pytest.mark.parametrize(("present", "genes", "message"), SPECIES.values(), ids=SPECIES)
def test_another_species_is_told(present: list[str], genes: list[str], message: str | None) -> None:
    said = find_other_species(translate(present, genes))
    assert (said is None) if message is None else (said and re.search(message, said)), said


def test_names_come_from_a_column_and_missing_ones_are_none() -> None:
    var = pd.DataFrame(
        {
            "text": ["a", None, "", " ", "b"],
            "kind": pd.Categorical(["a", None, "b", "b", "a"]),
            "entrez": [7157, np.nan, 672, 1, 2],
        },
        index=list("vwxyz"),
    )
    assert read_names(var) == list("vwxyz")
    assert read_names(var.set_axis([" v", "w ", "x", "y\t", "z"])) == list("vwxyz")
    assert read_names(var, "text") == ["a", None, None, None, "b"]
    assert read_names(var, "kind") == ["a", None, "b", "b", "a"]
    assert read_names(var, "entrez") == ["7157", None, "672", "1", "2"]
    with pytest.raises(GeneError, match=r"no column 'texts'.*columns are text, kind, entrez"):
        read_names(var, "texts")
    with pytest.raises(GeneError, match="columns are none"):
        read_names(pd.DataFrame(index=["a"]), "a")


def test_names_are_judged_by_their_majority() -> None:
    assert Nomenclature.of([*MANY, "ERCC-1"]) == Nomenclature(True, "human", tuple(MANY[:3]))
    assert not Nomenclature.of([]).ensembl
    assert Nomenclature.of(["Actb", "Cd4", "MT"]).species == "mouse"


def test_many_names_take_little_time() -> None:
    atlas = [f"ENSG{i:011d}.{i % 20}" for i in range(30_000)]
    present = [f"ensg{i:011d}.{i % 7}" if i % 2 else f"ENSG{i:011d}" for i in range(60_000)]
    start = time.process_time()
    found = translate(present, atlas)
    assert find_other_species(found) is None
    assert (found.n_version, found.n_case) == (15_000, 15_000)
    assert time.process_time() - start < 5


NAMES = st.sampled_from(
    ["ACTB", "actb", "Actb", "C1orf1", "C1ORF1", "ENSG1", "ENSG1.2", "ENSG1.3", "ensg1", "x", None]
)


@given(st.lists(NAMES, max_size=12), st.sets(NAMES.filter(bool), max_size=6), st.randoms())
def test_order_does_not_matter_and_exact_names_win(
    present: list[str | None], atlas: set[str], random: object
) -> None:
    genes = sorted(atlas)
    found = translate(present, genes)
    order = list(range(len(present)))
    random.shuffle(order)  # type: ignore[attr-defined]
    random.shuffle(genes)  # type: ignore[attr-defined]
    again = translate([present[i] for i in order], genes)
    assert list(again.names) == [found.names[i] for i in order]
    assert (again.n_exact, again.n_version, again.n_case) == (
        found.n_exact,
        found.n_version,
        found.n_case,
    )
    for name, gene in zip(found.present, found.names, strict=True):
        assert gene is None or (gene in atlas and name is not None)
        assert name not in atlas or gene == name
        assert (name, gene) not in [("Actb", "ACTB"), ("ACTB", "Actb")]
