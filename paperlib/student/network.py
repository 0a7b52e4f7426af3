"""The ×3 student: extract – refine – upsample, all in LR space (paper section 1).

Input and output are RGB in 0..255. f0 = stem(x); f = body(f0) + f0; sr = PixelShuffle(head(f)).
The deployable form, fused, has 82,683 parameters.
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.settings import SCALE, StudentSettings
from paperlib.student import blocks
from paperlib.student.fast_reparam import can_merge, merged_forward
from paperlib.student.graph import Node, conv_node


def _block(settings: StudentSettings, form: str) -> nn.Module:
    arch, channels = settings.arch, settings.channels
    if form == "fused":
        return (blocks.FusedRepDW if arch == "repdw" else blocks.FusedConv)(channels)
    if arch == "mobileone":
        return blocks.mobileone(channels, settings.branches)
    return {"repconv": blocks.RepConv, "repdw": blocks.RepDW}[arch](channels)


def bilinear_kernel() -> Tensor:
    """Head weights (27, 3, 3, 3) that upscale RGB bilinearly before PixelShuffle(3); sub-pixel i of
    a row lies (i − 1)/3 LR pixels from its LR pixel's centre."""
    offsets = (torch.arange(SCALE) - (SCALE - 1) / 2) / SCALE
    # (3 sub-pixels, 3 LR pixels)
    taps = torch.stack([(-offsets).clamp(min=0), 1 - offsets.abs(), offsets.clamp(min=0)], dim=1)
    phases = torch.einsum("iy,jx->ijyx", taps, taps).reshape(SCALE**2, 3, 3)
    kernel = torch.zeros(3, SCALE**2, 3, 3, 3)
    for channel in range(3):
        kernel[channel, :, channel] = phases
    return kernel.reshape(3 * SCALE**2, 3, 3, 3)


@torch.no_grad()
def pass_rgb_on(body: Iterable[nn.Conv2d]) -> None:
    """Let channels 0–2 of a chain of convolutions carry the image, which activations keep."""
    for conv in body:
        middle = conv.kernel_size[0] // 2
        conv.weight[:3] = 0
        conv.weight[:3, :3, middle, middle] = torch.eye(3)
        conv.bias[:3] = 0


@torch.no_grad()
def start_bilinear(body: Iterable[nn.Conv2d], head: nn.Conv2d) -> None:
    """The body passes RGB on; the head upscales it bilinearly and ignores the other channels."""
    pass_rgb_on(body)
    head.weight.zero_()
    head.weight[:, :3] = bilinear_kernel()
    head.bias.zero_()


class Student(nn.Module):
    """The student network; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), around 0..255.

    Args:
        settings: architecture (`mobileone`, `repconv` or `repdw`) and its size.
        form: "expanded" (branches and BN), "collapsed" (the same weights, BN statistics frozen,
            each block computed as one convolution) or "fused" (plain convolutions).
        clamp: end with min(ReLU(y), 255); the paper clamps from QAT on, not in FP32 training.
    """

    def __init__(self, settings: StudentSettings, form: str = "expanded",
                 clamp: bool = False) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = settings, form, clamp
        self.stem = nn.Conv2d(3, settings.channels, 3, padding=1)
        self.body = nn.ModuleList(_block(settings, form) for _ in range(settings.blocks))
        self.head = nn.Conv2d(settings.channels, 3 * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)
        if settings.init == "bilinear":
            start_bilinear([self.stem], self.head)

    def forward(self, x: Tensor) -> Tensor:
        first = features = self.stem(x)  # (B, C, H, W)
        for block in self.body:
            features = self._run_block(block, features)
        sr = self.shuffle(self.head(features + first))  # (B, 3, 3H, 3W)
        return torch.clamp(F.relu(sr), max=255.0) if self.clamp else sr

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.form == "collapsed":
            return blocks.collapsed_forward(block, x)
        return merged_forward(block, x) if can_merge(block, x) else block(x)

    def fused(self) -> "Student":
        """A copy in fused form: every block one convolution (RepDW: two)."""
        twin = copy.deepcopy(self)
        if self.form != "fused":
            twin.body = nn.ModuleList(blocks.fuse_block(block) for block in self.body)
            twin.form = "fused"
        return twin

    def nodes(self) -> list[Node]:
        nodes = [conv_node("stem", self.stem, "input")]
        for index, block in enumerate(self.body):
            source, name = nodes[-1].name, f"body.{index}"
            if isinstance(block, blocks.FusedConv):
                nodes.append(conv_node(f"{name}.conv", block.conv, source, relu=True))
            else:
                nodes += [conv_node(f"{name}.depthwise", block.depthwise, source),
                          conv_node(f"{name}.pointwise", block.pointwise, f"{name}.depthwise"),
                          Node(f"{name}.add", "add", (f"{name}.pointwise", source), relu=True)]
        nodes.append(Node("skip", "add", (nodes[-1].name, "stem")))
        return [*nodes, conv_node("head", self.head, "skip")]


def with_form(student: Student, form: str) -> Student:
    """A copy of a student that is not fused, whose blocks run "expanded" or "collapsed"."""
    if student.form == "fused" or form not in ("expanded", "collapsed"):
        raise ValueError(f"cannot turn form {student.form!r} into {form!r}")
    twin = copy.deepcopy(student)
    twin.form = form
    return twin


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())
