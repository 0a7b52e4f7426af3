"""Benchmarks `scan` and `teacher`: the selective scan and the whole teacher against a loop over
tokens (paper section 2), as medians of interleaved rounds in one process.
"""

from typing import Any

import torch
from torch import Tensor

from paperlib.benchmarks.timing import interleaved
from paperlib.environment import keep_freed_memory
from paperlib.teacher.network import MambaIRv2Light, SelectiveScan
from paperlib.teacher.scan import scan_backend, selective_scan

LANES, STATES = 48, 8
"""Channels and states of the published teacher."""


def _inputs(tokens: int, grad: bool = False) -> list[Tensor]:
    """Random inputs of the teacher's scan: u, Δ, A, B, C, D for one image of `tokens` tokens."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=random)
    inputs = [draw(1, tokens, LANES), draw(1, tokens, LANES), -draw(LANES, STATES).exp(),
              draw(1, tokens, STATES), draw(1, tokens, STATES), draw(LANES)]
    return [x.requires_grad_(grad) for x in inputs]


def _forward_and_back(inputs: list[Tensor], backend: str) -> None:
    for x in inputs:
        x.grad = None
    selective_scan(*inputs, backend=backend).sum().backward()


def bench_scan(tokens: int = 4096, rounds: int = 5) -> dict[str, Any]:
    """The CPU scan against the loop over tokens.

    Returns:
        `ratio_vs_loop` (no gradient), `ratio_vs_loop_training` (forward and backward, 1024 tokens).
    """
    keep_freed_memory()
    inputs, short = _inputs(tokens), _inputs(1024, grad=True)
    with torch.no_grad():
        seconds = interleaved({"ours": lambda: selective_scan(*inputs),
                               "loop": lambda: selective_scan(*inputs, backend="loop")}, rounds)
    training = interleaved({"ours": lambda: _forward_and_back(short, "auto"),
                            "loop": lambda: _forward_and_back(short, "loop")}, rounds)
    return {
        "what": f"selective scan, {LANES} channels × {STATES} states, {tokens} tokens, CPU, "
                "float32",
        "backend": scan_backend("cpu"), "threads": torch.get_num_threads(), "rounds": rounds,
        "ratio_vs_loop": seconds["loop"] / seconds["ours"],
        "ratio_vs_loop_training": training["loop"] / training["ours"],
        "ms": {name: 1e3 * value for name, value in seconds.items()}}


def _upscale(model: MambaIRv2Light, x: Tensor, backend: str) -> Tensor:
    for module in model.modules():
        if isinstance(module, SelectiveScan):
            module.backend = backend
    return model(x)


@torch.no_grad()
def bench_teacher(size: int = 170, rounds: int = 3) -> dict[str, Any]:
    """The whole teacher on a size × size LR image, against the same with a loop over tokens.

    Some two minutes on two cores, nearly all of it for the loop. The weights are random. Returns
    `ratio_vs_loop_scan` and the `seconds` of both.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    model, x = MambaIRv2Light().eval(), torch.rand(1, 3, size, size)
    model(x)  # compiles the scan
    seconds = interleaved({"ours": lambda: _upscale(model, x, "auto"),
                           "loop": lambda: _upscale(model, x, "loop")}, rounds, warm=0)
    return {
        "what": f"MambaIRv2-light ×3, one {size}×{size} LR image, CPU, float32",
        "backend": scan_backend("cpu"), "threads": torch.get_num_threads(), "rounds": rounds,
        "ratio_vs_loop_scan": seconds["loop"] / seconds["ours"], "seconds": seconds}
