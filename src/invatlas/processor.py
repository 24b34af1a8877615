"""How the processor is used: torch's ways, changed for a while and put back, and its threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


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


@contextmanager
def repeatable() -> Iterator[None]:
    """Let torch add in one order, however many threads it has, so that a seed gives one result."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` in order, at work in as many threads as torch may use.

    Meanwhile every operation of torch keeps to one thread: several for each of many small ones
    wait for each other. Items are taken in this thread, and no more of them than are soon needed;
    what is spread within them is not spread again. The inference mode of this thread holds in all.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    inferring = torch.is_inference_mode_enabled()

    def work(item: Item) -> Result:
        with torch.inference_mode(inferring):
            return function(item)

    with kept_threads(), ThreadPoolExecutor(threads) as pool:
        torch.set_num_threads(1)
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
