"""How torch uses the processor, changed for a while and then put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_threads() -> Iterator[None]:
    """Give torch back the number of threads it had: numba sets OpenMP's to every core."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quick_products() -> Iterator[None]:
    """Multiply float32 matrices the quickest way the processor has.

    With bfloat16 allowed, torch leaves the default library for oneDNN. Where the processor has
    units for bfloat16 matrices (AMX), factors are rounded to 8 bits and sums kept in float32;
    elsewhere the product is a float32 one, only faster. Earlier versions of torch than 2.9 cannot
    do this for a while only, and keep their way.
    """
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if products is None or not hasattr(products, "fp32_precision"):
        yield
        return
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
