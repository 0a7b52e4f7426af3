"""Timing two things fairly: in turn, in one process, the least of several runs each."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of each function over `rounds` passes through all of them, after `warm` uncounted ones."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + warm):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if number >= warm:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}
