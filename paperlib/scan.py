"""The selective scan of the teacher's state-space layers, linear in time and memory, with or without a GPU (section 2).

h_t = exp(Δ_t A)·h_{t−1} + Δ_t B_t u_t and y_t = C_t·h_t + D u_t, per channel, over the sequence. Three backends behind
one function, chosen by what is there and never swapped silently: `mamba_ssm` on CUDA, `numba` on the CPU (a chunk of
tokens at a time; also its own gradient, which recomputes the states of each chunk), and `loop`, the recurrence as
written, for tests.
"""

import importlib.util

import numba
import numpy as np
import torch
from torch import Tensor

CHUNK = 1024
"""Tokens whose states are held at a time: a few MB, so that they stay in the processor's cache."""


@numba.njit(cache=True, nogil=True, fastmath=True)
def _forward(decay, drive, b, c, state, y, states, keep):
    """Run the recurrence over one chunk; lanes (D) are contiguous, so the inner loops become vector instructions.

    decay (T, N, D): exp(Δ A); drive (T, D): Δ u; b, c (T, N); state (N, D) in and out; y (T, D) out; with `keep`,
    states (T, N, D) receives every h_t.
    """
    tokens, size, lanes = decay.shape
    for t in range(tokens):
        for d in range(lanes):
            y[t, d] = 0
        for n in range(size):
            gain_in, gain_out = b[t, n], c[t, n]
            for d in range(lanes):
                h = decay[t, n, d] * state[n, d] + gain_in * drive[t, d]
                state[n, d] = h
                y[t, d] += gain_out * h
                if keep:
                    states[t, n, d] = h


@numba.njit(cache=True, nogil=True, fastmath=True)
def _backward(decay, c, grad_y, carry, grad_h):
    """Gradient of every state of a chunk, last token first.

    carry (N, D) in and out: what the tokens after this chunk pass back to its last state.
    """
    tokens, size, lanes = decay.shape
    for back in range(tokens):
        t = tokens - 1 - back
        for n in range(size):
            gain = c[t, n]
            for d in range(lanes):
                g = carry[n, d] + gain * grad_y[t, d]
                grad_h[t, n, d] = g
                carry[n, d] = decay[t, n, d] * g


def _decay(delta: Tensor, a: Tensor) -> Tensor:
    """exp(Δ_t A): delta (T, D), a (D, N) → (T, N, D), contiguous."""
    return torch.exp(delta[:, None, :] * a.T[None])


class _CpuScan(torch.autograd.Function):
    """Chunked scan of one sequence: u, delta (L, D); a (D, N); b, c (L, N); skip (D,) → y (L, D)."""

    @staticmethod
    def forward(ctx, u, delta, a, b, c, skip):
        length, lanes = u.shape
        size = a.shape[1]
        y, state = torch.empty_like(u), u.new_zeros(size, lanes)
        starts = []
        nothing = np.empty((0, size, lanes), state.numpy().dtype)
        for first in range(0, length, CHUNK):
            part = slice(first, min(first + CHUNK, length))
            starts.append(state.clone())
            decay, drive = _decay(delta[part], a), delta[part] * u[part]
            _forward(decay.numpy(), drive.numpy(), b[part].numpy(), c[part].numpy(), state.numpy(), y[part].numpy(),
                     nothing, False)
        ctx.save_for_backward(u, delta, a, b, c, skip, torch.stack(starts))
        return y.addcmul_(u, skip)

    @staticmethod
    def backward(ctx, grad_y):
        u, delta, a, b, c, skip, starts = ctx.saved_tensors
        length, lanes = u.shape
        grad_y = grad_y.contiguous()
        carry = u.new_zeros(a.shape[1], lanes)
        grad_u, grad_delta = grad_y * skip, torch.empty_like(delta)
        grad_a, grad_b, grad_c = torch.zeros_like(a), torch.empty_like(b), torch.empty_like(c)
        for index in reversed(range(len(starts))):
            part = slice(index * CHUNK, min((index + 1) * CHUNK, length))
            decay, drive = _decay(delta[part], a), delta[part] * u[part]
            states, grad_h, y = torch.empty_like(decay), torch.empty_like(decay), torch.empty_like(drive)
            _forward(decay.numpy(), drive.numpy(), b[part].numpy(), c[part].numpy(), starts[index].clone().numpy(),
                     y.numpy(), states.numpy(), True)
            _backward(decay.numpy(), c[part].numpy(), grad_y[part].numpy(), carry.numpy(), grad_h.numpy())
            before = torch.cat([starts[index][None], states[:-1]])
            grad_c[part] = (states * grad_y[part][:, None]).sum(2)
            grad_b[part] = (grad_h * drive[:, None]).sum(2)
            grad_drive = (grad_h * b[part][:, :, None]).sum(1)
            grad_rate = grad_h * before * decay  # gradient of Δ_t A, (T, N, D)
            grad_a += torch.einsum("tnd,td->dn", grad_rate, delta[part])
            grad_delta[part] = torch.einsum("tnd,dn->td", grad_rate, a) + grad_drive * u[part]
            grad_u[part] += grad_drive * delta[part]
        return grad_u, grad_delta, grad_a, grad_b, grad_c, (grad_y * u).sum(0)


def _loop_scan(u, delta, a, b, c, skip):
    """The recurrence as the paper writes it, one token after another; u (L, D). For tests and benchmarks."""
    state, rows = u.new_zeros(u.shape[1], a.shape[1]), []
    for t in range(u.shape[0]):
        state = torch.exp(delta[t, :, None] * a) * state + delta[t, :, None] * b[t] * u[t, :, None]
        rows.append((state * c[t]).sum(1) + skip * u[t])
    return torch.stack(rows)


def _mamba_scan(u, delta, a, b, c, skip):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    move = lambda x: x.transpose(1, 2).contiguous()
    return selective_scan_fn(move(u), move(delta), a, move(b), move(c), skip).transpose(1, 2)


def scan_backend(device: torch.device | str) -> str:
    """The backend that `selective_scan` uses on a device: "mamba_ssm" on CUDA where installed, else "numba".

    Raises:
        RuntimeError: CUDA without mamba-ssm; there is no silent copy to the CPU.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return "numba"
    if kind == "cuda" and importlib.util.find_spec("mamba_ssm"):
        return "mamba_ssm"
    raise RuntimeError(f"no selective scan for device {kind}: install the extra 'cuda' (mamba-ssm), or use the CPU")


def selective_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, backend: str = "auto",
) -> Tensor:
    """The selective scan, differentiable in all inputs; computed in float32 or float64.

    Args:
        u: input tokens (B, L, D). delta: step sizes (B, L, D), positive (after softplus).
        a: (D, N), negative. b, c: (B, L, N). skip: (D,), the D of the formula.
        backend: "auto" (see `scan_backend`), "numba", "mamba_ssm" or "loop".

    Returns:
        y (B, L, D), in the type of `u`.

    Raises:
        ValueError: an unknown backend.
    """
    backend = scan_backend(u.device) if backend == "auto" else backend
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    inputs = [x.to(dtype) for x in (u, delta, a, b, c, skip)]
    if backend == "mamba_ssm":
        return _mamba_scan(*inputs).to(u.dtype)
    if backend not in ("numba", "loop"):
        raise ValueError(f"unknown scan backend {backend!r}")
    one = _CpuScan.apply if backend == "numba" else _loop_scan
    u, delta, a, b, c, skip = (x.contiguous() for x in inputs)
    rows = [one(u[i], delta[i], a, b[i], c[i], skip) for i in range(u.shape[0])]
    return torch.stack(rows).to(inputs[0].dtype)
