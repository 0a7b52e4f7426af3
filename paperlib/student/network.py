"""The ×3 student: extract – refine – upsample, all in LR space (paper section 1).

Input and output are RGB in 0..255. f0 = stem(x); f = body(f0) + f0; sr = PixelShuffle(head(f)). In
the expanded form the body consists of re-parameterisable blocks; `fuse` gives the deployable form
with 82,683 parameters.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.settings import SCALE, StudentSettings
from paperlib.student.blocks import FusedConv, FusedRepDW, RepConv, RepDW, collapsed_forward, fuse_block, mobileone
from paperlib.student.fast_reparam import can_merge, merged_forward
from paperlib.student.graph import Node, conv_node


def _training_block(settings: StudentSettings) -> nn.Module:
    if settings.arch == "mobileone":
        return mobileone(settings.channels, settings.branches)
    return {"repconv": RepConv, "repdw": RepDW}[settings.arch](settings.channels)


def _fused_block(settings: StudentSettings) -> nn.Module:
    return FusedRepDW(settings.channels) if settings.arch == "repdw" else FusedConv(settings.channels)


def bilinear_kernel(scale: int = SCALE) -> Tensor:
    """Head weights (3·scale², 3, 3, 3) that upscale RGB bilinearly when followed by PixelShuffle(scale).

    Sub-pixel i of a row lies (i − (scale−1)/2)/scale LR pixels from its LR pixel's centre.
    """
    offsets = (torch.arange(scale) - (scale - 1) / 2) / scale
    # (scale, 3)
    taps = torch.stack([(-offsets).clamp(min=0), 1 - offsets.abs(), offsets.clamp(min=0)], dim=1)
    phases = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale * scale, 3, 3)
    kernel = torch.zeros(3, scale * scale, 3, 3, 3)
    for channel in range(3):
        kernel[channel, :, channel] = phases
    return kernel.reshape(3 * scale * scale, 3, 3, 3)


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
        make = _fused_block if form == "fused" else _training_block
        self.stem = nn.Conv2d(3, settings.channels, 3, padding=1)
        self.body = nn.ModuleList(make(settings) for _ in range(settings.blocks))
        self.head = nn.Conv2d(settings.channels, 3 * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)
        if settings.init == "bilinear":
            self._start_bilinear()

    @torch.no_grad()
    def _start_bilinear(self) -> None:
        """Stem channels 0–2 pass RGB on; the head upscales those bilinearly and ignores the rest."""
        self.stem.weight[:3] = 0
        self.stem.weight[:3, :, 1, 1] = torch.eye(3)
        self.stem.bias[:3] = 0
        self.head.weight.zero_()
        self.head.weight[:, :3] = bilinear_kernel()
        self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)  # (B, C, H, W)
        features = first
        for block in self.body:
            features = self._run_block(block, features)
        sr = self.shuffle(self.head(features + first))  # (B, 3, 3H, 3W)
        return torch.clamp(F.relu(sr), max=255.0) if self.clamp else sr

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.form == "collapsed":
            return collapsed_forward(block, x)
        return merged_forward(block, x) if can_merge(block, x) else block(x)


def with_form(student: Student, form: str) -> Student:
    """A copy with the same weights whose blocks run "expanded" or "collapsed".

    Raises:
        ValueError: the student is fused, or `form` is neither.
    """
    if student.form == "fused" or form not in ("expanded", "collapsed"):
        raise ValueError(f"cannot turn form {student.form!r} into {form!r}")
    twin = copy.deepcopy(student)
    twin.form = form
    return twin


def fuse(student: Student, clamp: bool | None = None) -> Student:
    """The deployable copy: every block one convolution (RepDW: two); the input is not changed.

    Args:
        clamp: end with min(ReLU(y), 255); None keeps the student's own choice.
    """
    clamp = student.clamp if clamp is None else clamp
    fused = copy.deepcopy(student)
    fused.clamp = clamp
    if student.form != "fused":
        fused.body = nn.ModuleList(fuse_block(block) for block in student.body)
        fused.form = "fused"
    return fused


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())


def student_nodes(model: Student) -> list[Node]:
    nodes = [conv_node("stem", model.stem, "input")]
    for index, block in enumerate(model.body):
        source, name = nodes[-1].name, f"body.{index}"
        if isinstance(block, FusedConv):
            nodes.append(conv_node(f"{name}.conv", block.conv, source, relu=True))
        elif isinstance(block, FusedRepDW):
            nodes.append(conv_node(f"{name}.depthwise", block.depthwise, source))
            nodes.append(conv_node(f"{name}.pointwise", block.pointwise, nodes[-1].name))
            nodes.append(Node(f"{name}.add", "add", (nodes[-1].name, source), relu=True))
    nodes.append(Node("skip", "add", (nodes[-1].name, "stem")))
    return [*nodes, conv_node("head", model.head, "skip")]
