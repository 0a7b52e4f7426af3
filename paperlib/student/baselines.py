"""Table B's baselines FSRCNN and ABPN (paper section 7), with the student's interface.

After Dong et al., ECCV 2016, and Du et al., CVPR workshops 2021, for ×3 RGB in 0..255:
(B, 3, H, W) → (B, 3, 3H, 3W).
"""

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from paperlib.settings import SCALE, StudentSettings
from paperlib.student.graph import Node, conv_node
from paperlib.student.network import bilinear_kernel, pass_rgb_on, start_bilinear


def subpixel_weight(weight: Tensor) -> Tensor:
    """Kernel (9·O, I, k, k) of the convolution + PixelShuffle(3) that equals a transposed one of
    weight (I, O, 3k, 3k), stride 3, k odd, and padding 3·(k//2)."""
    taps = rearrange(weight, "i o (k a) (l b) -> (o a b) i k l", a=SCALE, b=SCALE)
    return taps.flip(2, 3)  # taps run against the offset


class FSRCNN(nn.Module):
    """FSRCNN(56, 12, 4): 5×5, 1×1, four 3×3, 1×1, PReLU between, transposed 9×9 with stride 3.

    24,683 parameters. Padding 3 centres the 9×9 kernel on the middle one of the nine sub-pixels.
    The fused form computes the transposed convolution as 3×3 convolution and PixelShuffle.
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
            pass_rgb_on(self.body)
            with torch.no_grad():  # `subpixel_weight` undone
                self.head.weight.zero_()[:3] = rearrange(
                    bilinear_kernel().flip(2, 3), "(o a b) i k l -> i o (k a) (l b)", a=3, b=3)

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

    def nodes(self) -> list[Node]:
        nodes: list[Node] = []
        for index, (conv, act) in enumerate(zip(self.body, self.act, strict=True)):
            nodes.append(conv_node(f"body.{index}", conv, nodes[-1].name if nodes else "input"))
            slopes = act.weight.detach().clone()
            nodes.append(Node(f"act.{index}", "prelu", (nodes[-1].name,), slopes))
        return [*nodes, conv_node("head", self.head, nodes[-1].name)]


class ABPN(nn.Module):
    """ABPN-M4C28: 3×3 convolutions, ReLU (3→28, four 28→28, 28→27), 27→27, anchor, PixelShuffle.

    The anchor is the LR image, each channel nine times: the network learns the difference to
    nearest-neighbour upscaling. 42,539 parameters.
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
            start_bilinear(self.body, self.head)
            with torch.no_grad():  # but for the anchor's part
                self.head.weight[:, :3, 1, 1] -= torch.eye(3).repeat_interleave(SCALE**2, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.body:
            features = self.act(conv(features))
        # (B, 27, H, W), in PixelShuffle's channel order
        anchor = x.repeat_interleave(SCALE**2, dim=1)
        sr = self.shuffle(self.head(features) + anchor)
        return torch.clamp(sr, 0.0, 255.0) if self.clamp else sr

    def nodes(self) -> list[Node]:
        nodes: list[Node] = []
        for index, conv in enumerate(self.body):
            source = nodes[-1].name if nodes else "input"
            nodes.append(conv_node(f"body.{index}", conv, source, relu=True))
        return [*nodes, conv_node("head", self.head, nodes[-1].name),
                Node("anchor", "repeat", ("input",)), Node("sum", "add", ("head", "anchor"))]
