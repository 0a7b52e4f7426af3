"""Ablation: quantisation-aware training on the branches, fused afterwards (the order that paper section 4 turns round).

Every branch keeps a convolution of its own, with its BatchNorm folded into it (INT8 has none), and FX rounds each
branch's kernel and each partial sum, as in a network that is never fused. Then the branches are added up: the grids of
the maps between blocks stay as trained, those of the fused kernels are new, and nothing was trained for them.
"""

import operator

import torch
import torch.nn.functional as F
from timm.models.byobnet import MobileOneBlock
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.quantisation.fx_qat import FakeQuantize, PaperQat, calibrate_paper, prepare_fx
from paperlib.student.blocks import KernelBias, dirac, fold_bn
from paperlib.student.models import build_model
from paperlib.student.network import Student


def _convolution(kernel_bias: KernelBias, groups: int = 1) -> nn.Conv2d:
    kernel, bias = kernel_bias
    conv = nn.Conv2d(len(bias), len(bias), kernel.shape[-1], padding=kernel.shape[-1] // 2, groups=groups)
    conv.load_state_dict({"weight": kernel, "bias": bias})
    return conv


class Branches(nn.Module):
    """A MobileOne block as parallel convolutions with bias: k × 3×3, a 1×1, and the identity as a depthwise 1×1."""

    def __init__(self, block: MobileOneBlock) -> None:
        super().__init__()
        branches, ones = [*block.conv_kxk, block.conv_scale], torch.ones(block.identity.num_features, 1, 1, 1)
        convs = [_convolution(fold_bn(branch.conv.weight, None, branch.bn)) for branch in branches]
        convs.append(_convolution(fold_bn(ones, None, block.identity), groups=len(ones)))
        self.convs, self.act = nn.ModuleList(convs), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        total = self.convs[0](x)
        for conv in self.convs[1:]:
            total = total + conv(x)
        return self.act(total)


class BranchQat(PaperQat):
    """A student under FX fake-quantisation whose blocks still have their branches.

    Raises:
        UserError: another network than a MobileOne student in expanded form.
    """

    def __init__(self, student: Student) -> None:
        nn.Module.__init__(self)
        if student.settings.arch != "mobileone" or student.form != "expanded":
            raise UserError("the ablation branches_qat needs MobileOne blocks. Set student.arch to mobileone.")
        self.settings, self.form, self.clamp = student.settings, "qat", True
        model = build_model(student.settings, "fused", clamp=True)
        model.stem, model.head = student.stem, student.head
        model.body = nn.ModuleList(Branches(block) for block in student.body)
        self.fx = prepare_fx(model)


def _maps(model: PaperQat) -> list[FakeQuantize]:
    """The fake-quantisers of the maps between blocks, in order; those of partial sums inside a block are left out."""
    adds = [node for node in model.fx.graph.nodes if node.target is operator.add]
    seen = [(node.args[0], model.fx.get_submodule(node.target)) for node in model.fx.graph.nodes
            if node.op == "call_module"]
    return [module for node, module in seen
            if isinstance(module, FakeQuantize) and node not in adds[:-1] and ".convs." not in str(node.target)]


@torch.no_grad()
def fuse_branches(model: BranchQat) -> PaperQat:
    """The fused network of a trained `BranchQat`, under the grids of its maps, in evaluation mode."""
    fused = build_model(model.settings, "fused", clamp=True)
    fused.stem.load_state_dict({name: getattr(model.fx.stem, name) for name in ("weight", "bias")})
    fused.head.load_state_dict({name: getattr(model.fx.head, name) for name in ("weight", "bias")})
    for index, block in enumerate(fused.body):
        convs = list(model.fx.get_submodule(f"body.{index}.convs").children())
        kernels = [conv.weight if conv.groups == 1 else conv.weight * dirac(block.conv.weight)[:, :, 1:2, 1:2]
                   for conv in convs]
        block.conv.weight.copy_(sum(F.pad(kernel, [(3 - kernel.shape[-1]) // 2] * 4) for kernel in kernels))
        block.conv.bias.copy_(sum(conv.bias for conv in convs))
    merged = PaperQat(fused)
    calibrate_paper(merged, [torch.zeros(1, 3, 8, 8)])  # for the kernels' grids; those of the maps are replaced
    for mine, trained in zip(_maps(merged), _maps(model), strict=True):
        mine.load_state_dict(trained.state_dict())
    return merged.eval()
