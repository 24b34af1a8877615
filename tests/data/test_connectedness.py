"""How tables of cells fall apart: closed forms, and a regression."""

from __future__ import annotations

import numpy as np
import pytest

from invatlas.data.connectedness import find_groups, find_lonely, is_apart, measure_explained


def groups(table: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    return [(rows.tolist(), columns.tolist()) for rows, columns in find_groups(np.array(table))]


def test_what_is_explained_is_the_adjusted_r2_of_a_regression_on_indicators(
    generator: np.random.Generator,
) -> None:
    table = generator.integers(0, 40, (4, 6))
    row, column = (np.repeat(part.ravel(), table.ravel()) for part in np.indices(table.shape))
    y, x = np.isin(row, [1, 3]).astype(float), np.eye(6)[column]
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    adjusted = 1 - residual.var() / y.var() * (len(y) - 1) / (len(y) - 6)
    found = measure_explained(table, np.array([1, 3]))
    assert found == pytest.approx(max(0.0, adjusted))


def test_nothing_is_explained_where_all_cells_or_none_are_meant() -> None:
    table = np.array([[5, 3], [0, 0]])
    assert measure_explained(table, np.array([0])) == measure_explained(table, np.array([1])) == 0


def test_components_are_blocks_of_a_disconnected_design() -> None:
    table = [[9, 3, 0, 0], [2, 7, 0, 0], [0, 0, 8, 0], [0, 0, 0, 4], [0, 0, 0, 0]]
    assert groups(table) == [([0, 1], [0, 1]), ([2], [2]), ([3], [3])]
    assert groups([[9, 3], [2, 7]]) == []
    assert groups([[0, 0], [0, 0]]) == groups([[9, 3]]) == []


def test_a_chain_is_connected_although_its_ends_never_meet() -> None:
    assert groups([[50, 0, 0], [50, 50, 0], [0, 50, 50]]) == []


@pytest.mark.parametrize(("strays", "apart"), [(0, True), (1, True), (5, True), (15, False)])
def test_a_few_stray_cells_hardly_link_two_values(strays: int, apart: bool) -> None:
    table = [[100 - strays, strays], [strays, 100 - strays]]
    assert groups(table) == ([([0], [0]), ([1], [1])] if apart else [])


def test_a_frequent_value_is_not_apart_for_being_frequent() -> None:
    assert groups([[9700, 9600], [150, 170]]) == []
    assert find_lonely(np.array([[9700, 300], [150, 4]])) == []


def test_lonely_values_are_in_one_column_that_others_share() -> None:
    table = np.array([[30, 40], [25, 0], [4, 0], [0, 0]])
    assert find_lonely(table) == [(1, 0)], "four cells are too few to say so"
    assert find_lonely(table[:, :1]) == []
    assert is_apart(np.diag([3, 4]), np.array([0]), np.array([0]))
    assert not is_apart(table, np.array([1]), np.array([0]))
