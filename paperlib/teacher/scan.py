"""The selective scan of the teacher's layers, linear in time and memory (section 2).

h_t = exp(Δ_t A)·h_{t−1} + Δ_t B_t u_t and y_t = C_t·h_t + D u_t, per channel, over the sequence,
always in float32. Three backends, chosen by where the tensors are: `mamba_ssm` on CUDA, `numba` on
the CPU, and `loop`, the recurrence, for tests and benchmarks.

The CPU's kernel and its gradient go through one sequence once, a token at a time, with all channels
("lanes") side by side. Only the state at the start of every chunk is kept for the gradient, which
recomputes the others. The number of lanes is a compile-time constant, so that the inner loops
become vector instructions without remainder (2.6 times faster at 48 lanes).
"""

import importlib.util
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numba import float32
from torch import Tensor

from paperlib.errors import UserError

log = logging.getLogger(__name__)
CHUNK = 128  # tokens between two kept states; a chunk's states and decays stay in the second cache
FAST_MATH = {"contract", "reassoc", "nsz", "arcp"}
"""Sums may be reordered and fused; NaN and infinity keep their meaning."""


@numba.njit(inline="always")
def _exp(x):
    """exp(x) for x ≤ 0, relative error below 1e-7: 2^k·e^r, |r| ≤ ln 2 / 2, k in the exponent."""
    x = max(x, float32(-87.0))
    k = np.floor(x * float32(1.44269504) + float32(0.5))
    r = x - k * float32(0.693359375) + k * float32(2.12194440e-4)  # ln 2 in two pieces
    p = float32(1 / 5040)
    p = p * r + float32(1 / 720)
    p = p * r + float32(1 / 120)
    p = p * r + float32(1 / 24)
    p = p * r + float32(1 / 6)
    p = p * r + float32(1 / 2)
    return (p * r * r + r + float32(1)) * np.int32((np.int32(k) + 127) << 23).view(np.float32)


@numba.njit(inline="always")
def _softplus(x, e):
    """log(1 + exp(x)) given e = exp(−|x|), error below 3e-7: log(1 + e) = 2 artanh(e / (2 + e))."""
    s = e / (float32(2) + e)
    q = s * s
    p = float32(1 / 15)
    p = p * q + float32(1 / 13)
    p = p * q + float32(1 / 11)
    p = p * q + float32(1 / 9)
    p = p * q + float32(1 / 7)
    p = p * q + float32(1 / 5)
    p = p * q + float32(1 / 3)
    p = p * q + float32(1)
    return max(x, float32(0)) + float32(2) * s * p


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled; kept beside this file, in the user's cache, or in NUMBA_CACHE_DIR."""
    options = {"nogil": True, "fastmath": FAST_MATH, "error_model": "numpy"}
    try:
        return numba.njit(**options, cache=True)(function)
    except RuntimeError as error:  # numba found no folder that it may write
        log.warning("the scan is compiled anew in each process (a few seconds): %s", error)
        return numba.njit(**options)(function)


@lru_cache
def kernels(lanes: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward kernel for a number of channels, compiled on first use."""

    def forward(u, delta, b, c, y, starts, a, skip, bias):
        """u, delta, y (L, lanes); b, c (L, N); starts (chunks, N, lanes); a (N, lanes)."""
        length, states = b.shape
        state = np.zeros((states, lanes), np.float32)
        step, drive, out = (np.empty(lanes, np.float32), np.empty(lanes, np.float32),
                            np.empty(lanes, np.float32))
        for t in range(length):
            if t % CHUNK == 0:
                starts[t // CHUNK] = state
            for d in range(lanes):
                step[d] = delta[t, d] + bias[d]
            for d in range(lanes):
                step[d] = _softplus(step[d], _exp(-abs(step[d])))
            for d in range(lanes):
                drive[d] = step[d] * u[t, d]
                out[d] = skip[d] * u[t, d]
            for n in range(states):
                gain_in, gain_out = b[t, n], c[t, n]
                for d in range(lanes):
                    h = _exp(step[d] * a[n, d]) * state[n, d] + gain_in * drive[d]
                    state[n, d] = h
                    out[d] += gain_out * h
            for d in range(lanes):
                y[t, d] = out[d]

    def backward(u, delta, b, c, starts, grad_y, grad_u, grad_delta, grad_b, grad_c,
                 grad_a, grad_skip, a, skip, bias):
        """Shapes as in `forward`; grad_a and grad_skip are summed in float64 over chunks."""
        length, states = b.shape
        shape = (states, lanes)
        carry = np.zeros(shape, np.float32)  # what later tokens pass back to a token's state
        total_a, total_skip = np.zeros(shape, np.float64), np.zeros(lanes, np.float64)
        h = np.empty((CHUNK + 1, states, lanes), np.float32)
        decay = np.empty((CHUNK, states, lanes), np.float32)
        step, slope, drive = (np.empty((CHUNK, lanes), np.float32),
                              np.ones((CHUNK, lanes), np.float32),
                              np.empty((CHUNK, lanes), np.float32))
        to_step, to_drive = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
        for chunk in range(starts.shape[0] - 1, -1, -1):
            first = chunk * CHUNK
            count = min(CHUNK, length - first)
            h[0] = starts[chunk]
            for i in range(count):
                for d in range(lanes):
                    step[i, d] = delta[first + i, d] + bias[d]
                for d in range(lanes):
                    x = step[i, d]
                    e = _exp(-abs(x))
                    # softplus' = sigmoid
                    slope[i, d] = (float32(1) if x > 0 else e) / (float32(1) + e)
                    step[i, d] = _softplus(x, e)
                for d in range(lanes):
                    drive[i, d] = step[i, d] * u[first + i, d]
                for n in range(states):
                    gain = b[first + i, n]
                    for d in range(lanes):
                        decay[i, n, d] = _exp(step[i, d] * a[n, d])
                        h[i + 1, n, d] = decay[i, n, d] * h[i, n, d] + gain * drive[i, d]
            sum_a, sum_skip = np.zeros(shape, np.float32), np.zeros(lanes, np.float32)
            for i in range(count - 1, -1, -1):
                t = first + i
                to_step[:], to_drive[:] = 0, 0
                for n in range(states):
                    gain_in, gain_out = b[t, n], c[t, n]
                    sum_b, sum_c = float32(0), float32(0)
                    for d in range(lanes):
                        g = carry[n, d] + gain_out * grad_y[t, d]  # gradient of h_t
                        sum_b += g * drive[i, d]
                        sum_c += h[i + 1, n, d] * grad_y[t, d]
                        to_drive[d] += g * gain_in
                        carry[n, d] = g * decay[i, n, d]
                        rate = carry[n, d] * h[i, n, d]  # gradient of Δ_t A
                        to_step[d] += rate * a[n, d]
                        sum_a[n, d] += rate * step[i, d]
                    grad_b[t, n], grad_c[t, n] = sum_b, sum_c
                for d in range(lanes):
                    grad_u[t, d] = to_drive[d] * step[i, d] + skip[d] * grad_y[t, d]
                    grad_delta[t, d] = (to_step[d] + to_drive[d] * u[t, d]) * slope[i, d]
                    sum_skip[d] += grad_y[t, d] * u[t, d]
            total_a += sum_a
            total_skip += sum_skip
        grad_a[:], grad_skip[:] = total_a, total_skip

    return _compiled(forward), _compiled(backward)


def _for_each_row(work: Callable[[int], None], rows: int) -> None:
    """`work(row)` for a batch's rows, in PyTorch's number of threads; kernels release the GIL."""
    with ThreadPoolExecutor(min(rows, torch.get_num_threads())) as pool:
        list(pool.map(work, range(rows)))


class _CpuScan(torch.autograd.Function):
    """Scan in float32: u, delta (B, L, D); a (D, N); b, c (B, L, N); skip, bias (D,)."""

    @staticmethod
    def forward(ctx, u, delta, a, b, c, skip, bias):
        rows, length, lanes = u.shape
        a = a.t().contiguous()  # (N, D): lanes last, so that one step is a few vector instructions
        y = torch.empty_like(u)
        starts = u.new_empty(rows, -(-length // CHUNK), *a.shape)
        run, _ = kernels(lanes)
        arrays = [x.detach().numpy() for x in (u, delta, b, c, y, starts)]
        shared = [x.detach().numpy() for x in (a, skip, bias)]
        _for_each_row(lambda row: run(*(x[row] for x in arrays), *shared), rows)
        ctx.save_for_backward(u, delta, a, b, c, skip, bias, starts)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        u, delta, a, b, c, skip, bias, starts = ctx.saved_tensors
        rows, _, lanes = u.shape
        grads = [torch.empty_like(x) for x in (u, delta, b, c)]
        sums = [torch.empty(rows, *a.shape), torch.empty(rows, lanes)]  # of A and D, one a row
        _, run = kernels(lanes)
        arrays = [x.detach().numpy()
                  for x in (u, delta, b, c, starts, grad_y.contiguous(), *grads, *sums)]
        shared = [x.detach().numpy() for x in (a, skip, bias)]
        _for_each_row(lambda row: run(*(x[row] for x in arrays), *shared), rows)
        grad_u, grad_delta, grad_b, grad_c = grads
        grad_a, grad_skip = (part.sum(0) for part in sums)
        return grad_u, grad_delta, grad_a.t(), grad_b, grad_c, grad_skip, grad_delta.sum((0, 1))


def loop_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """The recurrence as the paper writes it, one token after another; `delta` after softplus."""
    state, tokens = u.new_zeros(u.shape[0], *a.shape), []  # (B, D, N)
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        state = torch.exp(step * a) * state + step * b[:, t, None] * u[:, t, :, None]
        tokens.append((state * c[:, t, None]).sum(2) + skip * u[:, t])
    return torch.stack(tokens, 1)


def _mamba_scan(u, delta, a, b, c, skip, bias):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, b, c = (x.transpose(1, 2).contiguous() for x in (u, delta, b, c))
    y = selective_scan_fn(u, delta, a, b, c, skip, delta_bias=bias, delta_softplus=True)
    return y.transpose(1, 2)


def scan_backend(device: torch.device | str) -> str:
    """The backend of `selective_scan` on a device: "numba" on the CPU, "mamba_ssm" on CUDA."""
    kind = torch.device(device).type
    if kind == "cpu":
        return "numba"
    if kind == "cuda" and importlib.util.find_spec("mamba_ssm"):
        return "mamba_ssm"
    raise UserError(f"no selective scan for device {kind}: mamba-ssm (CUDA only) is not installed. "
                    "Install the extra 'cuda', or run the teacher on the CPU.")


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor,
                   bias: Tensor | None = None, backend: str = "auto") -> Tensor:
    """The selective scan y (B, L, D), differentiable in all inputs, in float32 and returned in the
    type of `u` ("loop": in that type).

    Args:
        u, delta: input tokens and steps (B, L, D); step sizes are log(1 + exp(delta + bias)).
        a: (D, N), negative.
        b, c: (B, L, N).
        skip, bias: (D,), the D of the formula, and None for zero.
        backend: "auto" (see `scan_backend`), "numba", "mamba_ssm" or "loop".
    """
    backend = scan_backend(u.device) if backend == "auto" else backend
    (rows, length, lanes), states = u.shape, a.shape[-1]
    wanted = [u.shape, (lanes, states), (rows, length, states), (rows, length, states), (lanes,)]
    if [tuple(x.shape) for x in (delta, a, b, c, skip)] != [tuple(shape) for shape in wanted]:
        raise ValueError("selective_scan: shapes are u, delta (B, L, D), a (D, N), b, c (B, L, N), "
                         "skip (D,)")
    bias = u.new_zeros(lanes) if bias is None else bias
    if backend == "loop":
        return loop_scan(u, F.softplus(delta + bias), a, b, c, skip)
    run = {"numba": _CpuScan.apply, "mamba_ssm": _mamba_scan}[backend]
    return run(*(x.float().contiguous() for x in (u, delta, a, b, c, skip, bias))).to(u.dtype)
