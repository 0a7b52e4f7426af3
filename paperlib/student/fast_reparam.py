"""A MobileOne block in training mode, all branches at once (ours; the numbers are the paper's).

A branch k (C·9 values an output channel) on the 3×3 patches p of the input gives k·p, so with the
patches' mean m and second moments S = E[p pᵀ] its mean is k·m and its variance kᵀ (S − m mᵀ) k.
With them BatchNorms are scales, and branches add up to one convolution, forwards and backwards. S
follows from the input's autocorrelation over shifts of up to two pixels; the border sees zeros.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.byobnet import MobileOneBlock
from torch import Tensor, nn

from paperlib.student.blocks import dirac


class _Autocorrelation(torch.autograd.Function):
    """a[c, k, 2+dy, 2+dx] = Σ x[c, y, x]·x[k, y+dy, x+dx], zeros outside; (C, C, 5, 5)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        channels = x.shape[1]
        # dy = 0, 1, 2
        half = torch.nn.grad.conv2d_weight(F.pad(x, (2, 2, 0, 2)), (channels, channels, 3, 5), x)
        return torch.cat([half[:, :, 1:].flip(2, 3).transpose(0, 1), half], 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return F.conv2d(ctx.saved_tensors[0],
                        gradient + gradient.transpose(0, 1).flip(2, 3), padding=2)


class _Borders(torch.autograd.Function):
    """Last and first row (N, C, W), last and first column (N, C, H); one sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        return x[:, :, -1].clone(), x[:, :, 0].clone(), x[..., -1].clone(), x[..., 0].clone()

    @staticmethod
    def backward(ctx, *lines: Tensor) -> Tensor:
        gradient = torch.zeros_like(ctx.saved_tensors[0])
        borders = gradient[:, :, -1], gradient[:, :, 0], gradient[..., -1], gradient[..., 0]
        for line, border in zip(lines, borders, strict=True):
            border += line
        return gradient


def _along(line: Tensor) -> Tensor:
    """Summed second moments of three-pixel patches in a row or column (N, C, L); (C, C, 3, 3)."""
    shifted = torch.einsum("ncl,nkls->cks", line, F.pad(line, (2, 2)).unfold(2, 5, 1))
    return torch.stack([shifted[..., 2 - tap:5 - tap] for tap in range(3)], 2)


def patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of all 3×3 patches p of a batch (N, C, H, W) that is padded by zeros, differentiable.

    E[p], (9C,), and E[p pᵀ], (9C, 9C); p in the order of a kernel's values, as in `F.unfold`.
    """
    channels = x.shape[1]
    near = _Autocorrelation.apply(x)
    second = torch.stack([near[:, :, 2 - dy:5 - dy, 2 - dx:5 - dx]
                          for dy in range(3) for dx in range(3)], 2)
    second = second.reshape(channels, channels, 3, 3, 3, 3)
    mean = x.sum((0, 2, 3)).reshape(channels, 1, 1).repeat(1, 3, 3)
    bottom, top, right, left = _Borders.apply(x)
    # a kernel's first row (0) never sees the last row of pixels, its last (2) never the first
    for tap, row, column in ((0, bottom, right), (2, top, left)):
        second[:, :, tap, :, tap, :] -= _along(row)
        second[:, :, :, tap, :, tap] -= _along(column)
        mean[:, tap] -= row.sum((0, 2))[:, None]
        mean[:, :, tap] -= column.sum((0, 2))[:, None]
    for dy, row in ((0, bottom), (2, top)):  # the corners were taken away twice
        for dx, at in ((0, -1), (2, 0)):
            corner = row[..., at]
            second[:, :, dy, dx, dy, dx] += corner.T @ corner
            mean[:, dy, dx] += corner.sum(0)
    count = x.numel() // channels
    second = rearrange(second, "i j y x v u -> (i y x) (j v u)")
    return mean.flatten() / count, second / count


def can_merge(block: nn.Module, x: Tensor) -> bool:
    """Whether `merged_forward` computes a block: MobileOne's, in training, on a CPU.

    A GPU's convolutions may round to ten bits (TF32): too few for statistics from sums of squares.
    """
    return isinstance(block, MobileOneBlock) and block.training and x.device.type == "cpu"


def merged_forward(block: MobileOneBlock, x: Tensor) -> Tensor:
    """The block's forward pass in training mode with running statistics, but for rounding of sums.

    x is (N, C, H, W), with more than one pixel in all.
    """
    norms = [*(branch.bn for branch in block.conv_kxk), block.conv_scale.bn, block.identity]
    kernels = torch.stack([*(branch.conv.weight for branch in block.conv_kxk),
                           F.pad(block.conv_scale.conv.weight, [1, 1, 1, 1]),
                           dirac(block.conv_kxk[0].conv.weight)])
    branches, channels = kernels.shape[:2]
    flat = kernels.reshape(branches * channels, -1)
    mean_patch, second = patch_moments(x)
    mean = flat @ mean_patch
    variance = ((flat @ (second - torch.outer(mean_patch, mean_patch))) * flat).sum(1).clamp(min=0)
    gain = torch.cat([norm.weight for norm in norms]) / torch.sqrt(variance + norms[0].eps)
    kernel = (gain.reshape(branches, channels, 1, 1, 1) * kernels).sum(0)
    bias = torch.cat([norm.bias for norm in norms]) - gain * mean
    bias = bias.reshape(branches, channels).sum(0)
    _track(norms, mean.detach().reshape(branches, channels),
           variance.detach().reshape(branches, channels), x.numel() // channels)
    return F.relu(F.conv2d(x, kernel, bias, padding=1))


@torch.no_grad()
def _track(norms: list[nn.BatchNorm2d], means: Tensor, variances: Tensor, count: int) -> None:
    """BatchNorm's running statistics: the moving average, or without `momentum` the plain one."""
    for norm, mean, variance in zip(norms, means, variances, strict=True):
        norm.num_batches_tracked += 1
        weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, weight)
        norm.running_var.lerp_(variance * count / (count - 1), weight)
