"""The selective scan of the teacher's layers, linear in time and memory (section 2).

h_t = exp(Δ_t A)·h_{t−1} + Δ_t B_t u_t and y_t = C_t·h_t + D u_t, per channel, over the sequence,
always in float32. Three backends, chosen by where the tensors are: `mamba_ssm` on CUDA, `numba` on
the CPU (`paperlib.teacher.scan_kernels`), and `loop`, the recurrence, for tests and benchmarks.
"""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.errors import UserError
from paperlib.teacher.scan_kernels import CHUNK, kernels


def _for_each_row(work: Callable[[int], None], rows: int) -> None:
    """`work(row)` for a batch's rows, in PyTorch's number of threads; kernels release the GIL."""
    threads = min(rows, torch.get_num_threads())
    if threads <= 1:
        for row in range(rows):
            work(row)
        return
    with ThreadPoolExecutor(threads) as pool:
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
    """The selective scan, differentiable in all inputs. Tokens come before channels.

    Half precision is raised to float32 and the result lowered again; "loop" keeps float64, for
    references.

    Args:
        u: input tokens (B, L, D).
        delta: (B, L, D); step sizes are log(1 + exp(delta + bias)).
        a: (D, N), negative.
        b, c: (B, L, N).
        skip: (D,), the D of the formula.
        bias: (D,), or None for zero.
        backend: "auto" (see `scan_backend`), "numba", "mamba_ssm" or "loop".

    Returns:
        y (B, L, D), in the type of `u`.
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
