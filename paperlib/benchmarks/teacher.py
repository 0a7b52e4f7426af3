"""Benchmarks `scan` and `teacher`: the selective scan against its loop, and the whole teacher with either (section 2).

All ratios are medians of interleaved rounds in one process, so that a busy machine slows both sides alike.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from paperlib.benchmarks.timing import fraction_of_peak, interleaved, peak_rate
from paperlib.environment import keep_freed_memory
from paperlib.teacher.layers import SelectiveScan
from paperlib.teacher.network import MambaIRv2Light
from paperlib.teacher.scan import scan_backend, selective_scan

LANES, STATES = 48, 8
"""Channels and states of the published teacher."""


def scan_inputs(tokens: int, grad: bool = False) -> list[Tensor]:
    """Random inputs of the teacher's scan: u, Δ, A, B, C, D for one image of `tokens` tokens."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=random)
    inputs = [draw(1, tokens, LANES), draw(1, tokens, LANES), -draw(LANES, STATES).exp(), draw(1, tokens, STATES),
              draw(1, tokens, STATES), draw(LANES)]
    return [x.requires_grad_(grad) for x in inputs]


def _forward_and_back(inputs: list[Tensor], backend: str) -> None:
    for x in inputs:
        x.grad = None
    selective_scan(*inputs, backend=backend).sum().backward()


def bench_scan(
    tokens: int = 4096, rounds: int = 5, lengths: tuple[int, ...] = (16_384, 65_536, 262_144),
) -> dict[str, Any]:
    """The CPU scan against the loop over tokens, and how its time grows with the sequence.

    Returns:
        `ratio_vs_loop` (no gradient), `ratio_vs_loop_training` (forward and backward, 1024 tokens),
        `ns_per_token` by length, `growth` (largest over smallest of those), and what was measured.
    """
    keep_freed_memory()
    inputs, short = scan_inputs(tokens), scan_inputs(1024, grad=True)
    jobs = {"ours": lambda: selective_scan(*inputs),
            "loop": lambda: selective_scan(*inputs, backend="loop")}
    with torch.no_grad():
        seconds = interleaved(jobs, rounds)
    training = interleaved({name: lambda backend=backend: _forward_and_back(short, backend)
                            for name, backend in (("ours", "auto"), ("loop", "loop"))}, rounds)
    long = {length: scan_inputs(length) for length in lengths}
    with torch.no_grad():
        growth = interleaved({str(length): lambda x=x: selective_scan(*x)
                              for length, x in long.items()}, rounds)
    per_token = {length: 1e9 * value / int(length) for length, value in growth.items()}
    return {
        "what": f"selective scan, {LANES} channels × {STATES} states, {tokens} tokens, CPU, float32",
        "backend": scan_backend("cpu"), "threads": torch.get_num_threads(), "rounds": rounds,
        "ratio_vs_loop": seconds["loop"] / seconds["ours"],
        "ratio_vs_loop_training": training["loop"] / training["ours"],
        "ms": {name: 1e3 * value for name, value in seconds.items()},
        "ns_per_token": per_token, "growth": max(per_token.values()) / min(per_token.values())}


def use_backend(model: torch.nn.Module, backend: str) -> None:
    """Make every scan of a teacher use a backend of `selective_scan`."""
    for module in model.modules():
        if isinstance(module, SelectiveScan):
            module.backend = backend


def _with_backend(model: MambaIRv2Light, x: Tensor, backend: str) -> Tensor:
    use_backend(model, backend)
    return model(x)


def attention_gflop(model: MambaIRv2Light, height: int, width: int) -> float:
    """10⁹ operations of the two products in all window attentions, which PyTorch's counter does not see on a CPU."""
    shape = model.shape
    tokens = (height + -height % shape.window) * (width + -width % shape.window)
    return shape.groups * shape.layers * tokens * shape.window**2 * shape.dim * 2 * 2 / 1e9


def bench_teacher(size: int = 170, rounds: int = 3) -> dict[str, Any]:
    """The whole teacher on a random size × size LR image, against the same network with a loop over tokens.

    Takes some two minutes on two cores, nearly all of it for the loop.

    The weights do not matter for time; they are random.

    Returns:
        `ratio_vs_loop_scan`; `seconds` of both; `gflop` of one image (matrix products, convolutions and attention),
        `gflops` reached, `peak_gflops`, `peak_of` and `fraction_of_peak`; and what was measured.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    model, x = MambaIRv2Light().eval(), torch.rand(1, 3, size, size)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(x)  # also compiles the scan
        seconds = interleaved({"ours": lambda: _with_backend(model, x, "auto"),
                               "loop": lambda: _with_backend(model, x, "loop")}, rounds, warm=0)
    gflop = counter.get_total_flops() / 1e9 + attention_gflop(model, size, size)
    return {
        "what": f"MambaIRv2-light ×3, one {size}×{size} LR image, CPU, float32",
        "backend": scan_backend("cpu"), "threads": torch.get_num_threads(), "rounds": rounds,
        "ratio_vs_loop_scan": seconds["loop"] / seconds["ours"],
        "seconds": {"ours": seconds["ours"], "loop": seconds["loop"]},
        "gflop": gflop, "gflops": gflop / seconds["ours"],
        **fraction_of_peak(1e9 * gflop / seconds["ours"], peak_rate(1, size, model.shape.dim))}
