"""Torch's own settings survive what changes them for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from invatlas.processor import kept_threads, quick_products, spread

products = getattr(torch.backends.mkldnn, "matmul", None)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with kept_threads():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(products, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("before", ["none", "ieee"])
def test_precision_of_products_is_given_back_even_after_an_error(before: str) -> None:
    products.fp32_precision = before
    try:
        with pytest.raises(ZeroDivisionError), quick_products():
            assert before == "none" or products.fp32_precision == before
            raise ZeroDivisionError
        assert products.fp32_precision == before
    finally:
        products.fp32_precision = "none"


def test_quick_products_are_as_precise() -> None:
    a, b = torch.randn(512, 256), torch.randn(256, 1024)
    exact = a.double() @ b.double()
    with quick_products():
        assert (a @ b - exact).abs().max() < 2e-4


@pytest.mark.skipif(not hasattr(products, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize("found", [{"architecture": "x86_64", "amx_bf16": True}, {}])
def test_nothing_changes_where_factors_would_be_rounded(
    found: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    with quick_products():
        assert products.fp32_precision == "none"


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_whoever_ends_first(threads: int) -> None:
    def slowly(number: int) -> tuple[int, int]:
        time.sleep(0.02 if number == 0 else 0.0)
        return number, threading.get_ident()

    with kept_threads():
        torch.set_num_threads(threads)
        found = list(spread(slowly, iter(range(12))))
    assert [number for number, _ in found] == list(range(12))
    at_work = {thread for _, thread in found}
    assert len(at_work) <= threads
    assert (threading.get_ident() in at_work) == (threads == 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_at_work_is_raised_and_no_more_is_taken_than_needed(threads: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with kept_threads():
        torch.set_num_threads(threads)
        with pytest.raises(ZeroDivisionError):
            list(spread(lambda number: 1 // (3 - number), items()))
    assert len(taken) <= 3 + threads + 1


def test_torch_keeps_to_one_thread_within_what_is_spread() -> None:
    with kept_threads():
        torch.set_num_threads(3)
        within = list(spread(lambda _: torch.get_num_threads(), range(5)))
        assert within == [1] * 5 and torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(spread(lambda number: 1 / number, range(5)))
        assert torch.get_num_threads() == 3
