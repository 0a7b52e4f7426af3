"""The student's re-parameterisable blocks and how they fold (paper section 1, Table C).

A block, (B, C, H, W) → (B, C, H, W), has an expanded form (branches with BatchNorm) and a fused
one: a convolution that computes the same (RepDW: two). Folding a branch: W' = γ/√(σ²+ε)·W and
b' = β + γ/√(σ²+ε)·(b − μ); a 1×1 kernel is padded to the centre of a 3×3, an identity is a Dirac
3×3, and branches add up.
"""

import torch
import torch.nn.functional as F
from timm.models.byobnet import MobileOneBlock
from torch import Tensor, nn

KernelBias = tuple[Tensor, Tensor]


def fold_bn(weight: Tensor, bias: Tensor | None, bn: nn.BatchNorm2d) -> KernelBias:
    """Kernel (O, I/groups, k, k) and bias (O,) of the convolution that equals one with that weight
    and bias (None: zero) and a BatchNorm in evaluation mode behind it; differentiable (section 1).
    """
    gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    shift = -bn.running_mean if bias is None else bias - bn.running_mean
    return weight * gain.reshape(-1, 1, 1, 1), bn.bias + gain * shift


def dirac(like: Tensor, groups: int = 1) -> Tensor:
    """Kernel (O, I/groups, 3, 3) of the identity, in the type and on the device of `like`."""
    return nn.init.dirac_(like.new_zeros(len(like), len(like) // groups, 3, 3), groups)


class FusedConv(nn.Module):
    """Fused MobileOne or RepConv block: conv 3×3 with bias, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class FusedRepDW(nn.Module):
    """Fused RepDW block: depthwise 3×3, pointwise 1×1, residual, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.pointwise(self.depthwise(x)) + x)


class RepConv(nn.Module):
    """Ablation block RepConv: 1×1 → 3×3 → 1×1 in series, plus a parallel 1×1, then BN and ReLU.

    The first 1×1 has no bias, so that the 3×3's zero padding is the same before and after fusing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.expand = nn.Conv2d(channels, channels, 1)
        self.shortcut = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.expand(self.conv(self.squeeze(x))) + self.shortcut(x)))

    def kernel_and_bias(self) -> KernelBias:
        """Kernel (C, C, 3, 3) and bias (C,) of the equal convolution, differentiable."""
        squeeze, expand = self.squeeze.weight[:, :, 0, 0], self.expand.weight[:, :, 0, 0]
        series = torch.einsum("om,mnyx,ni->oiyx", expand, self.conv.weight, squeeze)
        kernel = series + F.pad(self.shortcut.weight, [1, 1, 1, 1])
        bias = expand @ self.conv.bias + self.expand.bias + self.shortcut.bias
        return fold_bn(kernel, bias, self.bn)


class RepDW(nn.Module):
    """Ablation block RepDW: depthwise 3×3+BN, 1×1+BN and identity BN → 1×1 → residual → ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn0 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)) + self.bn0(x)
        return self.act(self.pointwise(mixed) + x)

    def kernel_and_bias(self) -> KernelBias:
        """Kernel (C, 1, 3, 3) and bias (C,) of the depthwise part, differentiable."""
        kernel3, bias3 = fold_bn(self.conv3.weight, None, self.bn3)
        kernel1, bias1 = fold_bn(self.conv1.weight, None, self.bn1)
        kernel0, bias0 = fold_bn(dirac(self.conv3.weight, self.conv3.groups), None, self.bn0)
        return kernel3 + F.pad(kernel1, [1, 1, 1, 1]) + kernel0, bias3 + bias1 + bias0


def mobileone(channels: int, branches: int) -> MobileOneBlock:
    """The paper's block, timm's: `branches` × (3×3+BN), one 1×1+BN, identity BN, summed, ReLU."""
    return MobileOneBlock(channels, channels, 3, num_conv_branches=branches)


def kernel_and_bias(block: nn.Module) -> KernelBias:
    """Kernel and bias of the convolution that a block equals (RepDW: its depthwise part)."""
    if not isinstance(block, MobileOneBlock):
        return block.kernel_and_bias()
    pairs = [fold_bn(branch.conv.weight, None, branch.bn) for branch in block.conv_kxk]
    kernel_scale, bias_scale = fold_bn(block.conv_scale.conv.weight, None, block.conv_scale.bn)
    pairs.append((F.pad(kernel_scale, [1, 1, 1, 1]), bias_scale))
    pairs.append(fold_bn(dirac(block.conv_kxk[0].conv.weight), None, block.identity))
    kernels, biases = zip(*pairs, strict=True)
    return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


def collapsed_forward(block: nn.Module, x: Tensor) -> Tensor:
    """An expanded block, as in evaluation mode, computed as its fused form; gradients reach every
    branch."""
    kernel, bias = kernel_and_bias(block)
    if isinstance(block, RepDW):
        mixed = F.conv2d(x, kernel, bias, padding=1, groups=kernel.shape[0])
        return F.relu(block.pointwise(mixed) + x)
    return F.relu(F.conv2d(x, kernel, bias, padding=1))


@torch.no_grad()
def fuse_block(block: nn.Module) -> nn.Module:
    """The fused form of an expanded block, as a new module with its own weights."""
    kernel, bias = kernel_and_bias(block)
    if isinstance(block, RepDW):
        fused: nn.Module = FusedRepDW(bias.numel())
        fused.depthwise.weight.copy_(kernel)
        fused.depthwise.bias.copy_(bias)
        fused.pointwise.load_state_dict(block.pointwise.state_dict())
    else:
        fused = FusedConv(bias.numel())
        fused.conv.weight.copy_(kernel)
        fused.conv.bias.copy_(bias)
    return fused.to(kernel.device).train(block.training)
