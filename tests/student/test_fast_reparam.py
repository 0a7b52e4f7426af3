"""Branches summed by the moments of the input's patches: the block's own numbers, gradients and running statistics."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import update_bn

from paperlib.settings import StudentSettings
from paperlib.student import network
from paperlib.student.blocks import mobileone
from paperlib.student.fast_reparam import can_merge, merged_forward, patch_moments
from paperlib.student.network import Student


def some_input(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.7


def a_block(channels: int = 4, branches: int = 3) -> torch.nn.Module:
    torch.manual_seed(2)
    block = mobileone(channels, branches).double().train()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.7)
    return block


@pytest.mark.parametrize("size", [(3, 4, 6, 5), (2, 3, 2, 7), (2, 3, 1, 4), (5, 2, 1, 1)])
def test_moments_are_those_of_the_unfolded_patches(size):
    x = some_input(*size)
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    mean, second = patch_moments(x)
    torch.testing.assert_close(mean, patches.mean(0))
    torch.testing.assert_close(second, patches.T @ patches / len(patches))


def test_a_step_is_the_blocks_own():
    block, x = a_block(), some_input(3, 4, 6, 5).requires_grad_()
    twin, y = copy.deepcopy(block), x.detach().clone().requires_grad_()
    weights = some_input(3, 4, 6, 5)
    for _ in range(2):
        expected, found = block(x), merged_forward(twin, y)
        torch.testing.assert_close(found, expected)
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    for (name, one), other in zip(block.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    for (name, one), other in zip(block.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(other, one, msg=name)
    assert block.identity.num_batches_tracked == 2


def test_statistics_estimated_anew_are_the_plain_mean():
    student = Student(StudentSettings(channels=4, blocks=2, branches=2)).double()
    batches = [100 * some_input(2, 3, 8, 8), 80 * some_input(3, 3, 8, 8)]
    twin = copy.deepcopy(student)
    twin._run_block = lambda block, x: block(x)
    with torch.no_grad():
        update_bn(batches, student)
        update_bn(batches, twin)
    for (name, one), other in zip(twin.named_buffers(), student.buffers(), strict=True):
        torch.testing.assert_close(other, one, msg=name)


@pytest.fixture
def two_threads():
    """One thread adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_single_precision_is_as_near_as_the_blocks_own(two_threads):
    """Against the block in double precision, on inputs of a photograph's size, 0..255."""
    block = a_block(8, 5)
    x = (60 * some_input(4, 8, 24, 24) + 100).clamp(0, 255)
    exact = copy.deepcopy(block)(x)
    own, found = copy.deepcopy(block).float()(x.float()), merged_forward(copy.deepcopy(block).float(), x.float())
    error = lambda y: float((y.detach().double() - exact.detach()).norm() / exact.detach().norm())
    assert error(found) < max(3 * error(own), 1e-6)


def test_only_training_on_a_cpu_is_merged(monkeypatch):
    seen = []
    monkeypatch.setattr(network, "merged_forward", lambda block, x: seen.append(block) or block(x))
    student, x = Student(StudentSettings(channels=4, blocks=2, branches=2)), torch.rand(1, 3, 8, 8)
    student.train()(x)
    assert seen == list(student.body)
    student.eval()(x)
    Student(StudentSettings(arch="repconv", channels=4, blocks=2)).train()(x)
    assert len(seen) == 2
    assert not can_merge(student.body[0], x.to("meta"))
