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
def test_precision_of_products_is_given_back_even_after_an_error() -> None:
    before = products.fp32_precision
    with pytest.raises(ZeroDivisionError), quick_products():
        assert products.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert products.fp32_precision == before
