"""Torch's own settings survive what changes them for a while."""

from __future__ import annotations

import pytest
import torch

from invatlas.processor import kept_threads, quick_products

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
