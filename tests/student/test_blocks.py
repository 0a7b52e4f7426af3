"""Folding is arithmetic: every block's fused and collapsed form computes what its expanded form computes."""

import copy

import pytest
import torch
from torch import nn

from paperlib.settings import StudentSettings
from paperlib.student.blocks import RepConv, RepDW, collapsed_forward, fuse_block, mobileone
from paperlib.student.models import build_model
from paperlib.student.network import count_parameters

BLOCKS = {"mobileone": lambda: mobileone(8, 5), "repconv": lambda: RepConv(8), "repdw": lambda: RepDW(8)}


def lived_in(block: nn.Module) -> nn.Module:
    """The block in double precision with BN weights and statistics that are far from their defaults."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 2.0)
            nn.init.normal_(module.bias, std=0.7)
            nn.init.normal_(module.running_mean, std=2.0)
            nn.init.uniform_(module.running_var, 0.1, 9.0)
    return block.double().eval()


@pytest.mark.parametrize("name", BLOCKS)
def test_fused_and_collapsed_equal_training_form(name):
    block, x = lived_in(BLOCKS[name]()), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    before = copy.deepcopy(block.state_dict())
    with torch.no_grad():
        wanted = block(x)
        # fused weights are float32
        torch.testing.assert_close(fuse_block(block).double()(x), wanted, rtol=0, atol=2e-5)
        torch.testing.assert_close(collapsed_forward(block, x), wanted, rtol=0, atol=1e-12)
    for key, value in block.state_dict().items():
        assert torch.equal(value, before[key]), f"fusing changed {key}"


@pytest.mark.parametrize("name", BLOCKS)
def test_collapsed_gradients_equal_expanded(name):
    expanded, x = lived_in(BLOCKS[name]()), torch.randn(2, 8, 6, 5, dtype=torch.float64)
    collapsed, target = copy.deepcopy(expanded), torch.randn(2, 8, 6, 5, dtype=torch.float64)
    (expanded(x) - target).square().sum().backward()
    (collapsed_forward(collapsed, x) - target).square().sum().backward()
    for (key, one), (_, other) in zip(expanded.named_parameters(), collapsed.named_parameters(), strict=True):
        assert one.grad.abs().max() > 0, f"{key} gets no gradient"
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9, msg=key)


def of_layers(module: nn.Module, *kinds: type) -> int:
    return sum(count_parameters(part) for part in module.modules() if isinstance(part, kinds))


@pytest.mark.parametrize(("arch", "kernels", "with_bn", "network"), [
    ("mobileone", 5 * 9216 + 1024, 47_552, 389_115), ("repconv", 12_384, 12_448, 108_283),
    ("repdw", 288 + 32 + 1056, 1568, 21_243)])
def test_the_blocks_have_the_papers_width(arch, kernels, with_bn, network):
    """Weights and biases of a block at C = 32, the same with BN, and of the network with eight of them."""
    model = build_model(StudentSettings(arch=arch))
    assert of_layers(model.body[0], nn.Conv2d) == kernels
    assert count_parameters(model.body[0]) == with_bn
    assert count_parameters(model) == network
    assert network == 8 * with_bn + 896 + 7803  # stem and head
