"""How torch uses the processor, changed for a while and then put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """Multiply float32 matrices by oneDNN, where that is quicker and no less precise.

    With bfloat16 allowed, torch leaves its default library for oneDNN. On x86 processors without
    matrix units for bfloat16 (AMX) the product is a float32 one all the same. Elsewhere factors
    would be rounded to 8 bits, so nothing is changed there; nor where somebody chose a precision
    already, nor by versions of torch that cannot tell.
    """
    products = getattr(torch.backends.mkldnn, "matmul", None)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    exact = capabilities.get("architecture") == "x86_64" and not any(
        found for name, found in capabilities.items() if name.startswith("amx")
    )
    if products is None or not exact or getattr(products, "fp32_precision", "") != "none":
        yield
        return
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = "none"
