"""Table B's baselines FSRCNN and ABPN, and the one place that turns settings into a network (paper section 7).

Both are built from their papers' descriptions (Dong et al., ECCV 2016; Du et al., CVPR workshops
2021) for ×3 RGB in 0..255, with the student's interface.
"""

import copy

import torch
from torch import Tensor, nn

from paperlib.settings import SCALE, StudentSettings
from paperlib.student.graph import Node, conv_node
from paperlib.student.network import bilinear_kernel

STUDENTS = ("mobileone", "repconv", "repdw")


def subpixel_weight(weight: Tensor, scale: int = SCALE) -> Tensor:
    """Kernel (O·scale², I, k, k) of the convolution + PixelShuffle that equals a transposed convolution.

    Args:
        weight: (I, O, scale·k, scale·k) of a transposed convolution with stride `scale`, k odd, and the padding
            scale·(k//2), so that sub-pixels of LR pixel m are reached from LR pixels m−k//2 … m+k//2.
    """
    inputs, outputs, size, _ = weight.shape
    k = size // scale
    # taps run against the offset
    taps = weight.reshape(inputs, outputs, k, scale, k, scale).flip(2, 4)
    return taps.permute(1, 3, 5, 0, 2, 4).reshape(outputs * scale**2, inputs, k, k).contiguous()


def transposed_weight(kernel: Tensor, scale: int = SCALE) -> Tensor:
    """The inverse of `subpixel_weight`: (O·scale², I, k, k) → (I, O, scale·k, scale·k)."""
    outputs, inputs, k, _ = kernel.shape
    taps = kernel.reshape(outputs // scale**2, scale, scale, inputs, k, k).permute(3, 0, 4,
            1, 5, 2).flip(2, 4)
    return taps.reshape(inputs, outputs // scale**2, scale * k, scale * k).contiguous()


@torch.no_grad()
def _pass_rgb_on(body: nn.ModuleList) -> None:
    """Let the first three channels of a chain of convolutions carry the image, which activations of x ≥ 0 keep."""
    for conv in body:
        middle = conv.kernel_size[0] // 2
        conv.weight[:3] = 0
        conv.weight[:3, :3, middle, middle] = torch.eye(3)
        conv.bias[:3] = 0


class FSRCNN(nn.Module):
    """FSRCNN(56, 12, 4): 5×5, shrink 1×1, four 3×3, expand 1×1, PReLU between, transposed 9×9 with stride 3.

    24,683 parameters; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W). Padding 3 centres the 9×9 kernel on
    the middle one of the nine sub-pixels. The fused form computes the transposed convolution as 3×3
    convolution and PixelShuffle, which is the same function at the same cost and the form INT8
    devices run best (its three biases then stand nine times).
    """

    def __init__(self, settings: StudentSettings, form: str = "expanded",
                 clamp: bool = False) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = settings, form, clamp
        widths = [(3, 56, 5), (56, 12, 1), (12, 12, 3), (12, 12, 3), (12, 12, 3),
                  (12, 12, 3), (12, 56, 1)]
        self.body = nn.ModuleList(nn.Conv2d(i, o, kernel, padding=kernel // 2)
                                  for i, o, kernel in widths)
        self.act = nn.ModuleList(nn.PReLU(o) for _, o, _ in widths)
        for conv, act in zip(self.body, self.act, strict=True):
            nn.init.kaiming_normal_(conv.weight, a=act.init)
            nn.init.zeros_(conv.bias)
        if form == "fused":
            self.head = nn.Conv2d(56, 3 * SCALE**2, 3, padding=1)
        else:
            self.head = nn.ConvTranspose2d(56, 3, 3 * SCALE, stride=SCALE, padding=SCALE)
        self.shuffle = nn.PixelShuffle(SCALE) if form == "fused" else nn.Identity()
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)
        if settings.init == "bilinear" and form == "expanded":
            _pass_rgb_on(self.body)
            with torch.no_grad():
                self.head.weight.zero_()[:3] = transposed_weight(bilinear_kernel())

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv, act in zip(self.body, self.act, strict=True):
            features = act(conv(features))
        sr = self.shuffle(self.head(features))  # (B, 3, 3H, 3W)
        return torch.clamp(sr, 0.0, 255.0) if self.clamp else sr

    @torch.no_grad()
    def fused(self) -> "FSRCNN":
        """A copy in fused form."""
        twin = copy.deepcopy(self)
        if self.form == "expanded":
            twin.form, twin.shuffle = "fused", nn.PixelShuffle(SCALE)
            twin.head = nn.Conv2d(56, 3 * SCALE**2, 3, padding=1).to(self.head.weight.device)
            twin.head.weight.copy_(subpixel_weight(self.head.weight))
            twin.head.bias.copy_(self.head.bias.repeat_interleave(SCALE**2))
        return twin


class ABPN(nn.Module):
    """ABPN-M4C28: six 3×3 convolutions with ReLU (3→28, four 28→28, 28→27), 27→27, plus the anchor, PixelShuffle.

    The anchor is the LR image, each channel nine times: the network learns the difference to nearest-neighbour
    upscaling. 42,539 parameters; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), clipped to 0..255 with `clamp` (as the
    student, not while training in float: clipped values would have no gradient).
    """

    def __init__(self, settings: StudentSettings, clamp: bool = False) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = settings, "fused", clamp
        widths = [(3, 28), (28, 28), (28, 28), (28, 28), (28, 28), (28, 27)]
        self.body = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in widths)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(27, 3 * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)
        if settings.init == "bilinear":
            _pass_rgb_on(self.body)
            with torch.no_grad():
                self.head.weight.zero_()[:, :3] = bilinear_kernel()
                nearest = torch.eye(3).repeat_interleave(SCALE**2, dim=0)  # the anchor's part
                self.head.weight[:, :3, 1, 1] -= nearest
                self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.body:
            features = self.act(conv(features))
        # (B, 27, H, W), in PixelShuffle's channel order
        anchor = x.repeat_interleave(SCALE**2, dim=1)
        sr = self.shuffle(self.head(features) + anchor)
        return torch.clamp(sr, 0.0, 255.0) if self.clamp else sr


def fsrcnn_nodes(model: FSRCNN) -> list[Node]:
    nodes: list[Node] = []
    for index, (conv, act) in enumerate(zip(model.body, model.act, strict=True)):
        nodes.append(conv_node(f"body.{index}", conv, nodes[-1].name if nodes else "input"))
        nodes.append(Node(f"act.{index}", "prelu", (nodes[-1].name,), act.weight.detach().clone()))
    return [*nodes, conv_node("head", model.head, nodes[-1].name)]


def abpn_nodes(model: ABPN) -> list[Node]:
    nodes: list[Node] = []
    for index, conv in enumerate(model.body):
        nodes.append(conv_node(f"body.{index}", conv, nodes[-1].name if nodes else "input", relu=True))
    nodes.append(conv_node("head", model.head, nodes[-1].name))
    nodes.append(Node("anchor", "repeat", ("input",)))
    return [*nodes, Node("sum", "add", ("head", "anchor"))]
