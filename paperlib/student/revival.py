"""Channels that training has silenced, and their second start (ours, not the paper's).

A ReLU whose input is never positive passes no gradient on: the channel is lost for the rest of the training, and what
is deployed has less capacity than it pays for. `silent_channels` counts them; `revive` gives them fresh kernels and
leaves the function as it is, so that the next stage can use them.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from timm.models.byobnet import MobileOneBlock
from torch import Tensor, nn

from paperlib.student.blocks import kernel_and_bias
from paperlib.student.network import Student, fuse, with_form

SILENT = 1e-3
"""A channel is silent whose largest value is below this part of its block's median standard deviation."""
LAST = 0.05
"""Size of a revived channel of the last block, against its neighbours: the head reads it at once (global skip)."""


@torch.no_grad()
def _block_maps(student: Student, lr_255: Tensor) -> Iterator[Tensor]:
    """The body's maps on a batch, as deployed, one by one: the stem's output, then each block's; (B, C, h, w)."""
    fused = fuse(student).eval()
    features = fused.stem(lr_255)
    yield features
    for block in fused.body:
        features = block(features)
        yield features


def _spread(images: Tensor) -> Tensor:
    """Standard deviation of each channel, (C,)."""
    return images.transpose(0, 1).flatten(1).std(1)


def _silent(features: Tensor) -> Tensor:
    """Which channels of a block's output (B, C, h, w), never negative, are closed everywhere; (C,)."""
    return features.amax((0, 2, 3)) <= SILENT * _spread(features).median()


def silent_channels(student: Student, lr_255: Tensor) -> list[list[int]]:
    """Per block the numbers of its output channels that carry no signal.

    Args:
        student: in any form, of any block.
        lr_255: (B, 3, h, w) in 0..255, photographs.
    """
    blocks = islice(_block_maps(student, lr_255), 1, None)
    return [torch.nonzero(_silent(features)).flatten().tolist() for features in blocks]


def can_be_revived(model: nn.Module) -> bool:
    """Whether `revive` knows a network: a student of MobileOne blocks that still has its branches."""
    return isinstance(model, Student) and all(isinstance(block, MobileOneBlock) for block in model.body)


@torch.no_grad()
def revive(student: Student, lr_255: Tensor, seed: int) -> tuple[Student, list[int]]:
    """A copy in which silent channels have fresh kernels, as large as their block's others, and nobody reads them yet.

    The branches of such a channel get PyTorch's start and the BN statistics of the photographs given; the next block's
    kernels for it are 0, so that the function is the same and the gradient reaches them first. The last block's
    channels, which the skip adds to the stem's, begin at `LAST` of their neighbours' size instead.

    Args:
        student: MobileOne blocks, not fused; left unchanged.
        lr_255: (B, 3, h, w) in 0..255, photographs.
        seed: of the fresh kernels.

    Returns:
        The copy, and the number of revived channels of each block.

    Raises:
        ValueError: other blocks, or a fused student.
    """
    if not can_be_revived(student):
        raise ValueError("only a student of MobileOne blocks that is not fused has branches to revive")
    twin, generator, counts = with_form(student, "collapsed"), torch.Generator().manual_seed(seed), []
    # one look before anything changes: a revived neighbour would raise the median that the others are held against
    maps = list(_block_maps(twin, lr_255))
    found = [(_silent(features), _spread(features)) for features in maps[1:]]
    for index, (block, (silent, spread)) in enumerate(zip(twin.body, found, strict=True)):
        counts.append(int(silent.sum()))
        if not counts[-1]:
            continue
        size = float(spread[~silent].median()) if (~silent).any() else 1.0
        last = index + 1 == len(twin.body)
        _restart(block, silent, maps[index], size * (LAST if last else 1.0), generator)
        maps = list(_block_maps(twin, lr_255))
        if not last:
            _unread(twin.body[index + 1], silent, maps[index + 1])
    return with_form(twin, student.form), counts


def _set_statistics(bn: nn.BatchNorm2d, chosen: Tensor, out: Tensor) -> None:
    """BN statistics of the chosen channels from a map (B, C, h, w); a channel without spread keeps variance 1."""
    flat = out.transpose(0, 1).flatten(1)
    mean, var = flat.mean(1), flat.var(1)
    bn.running_mean[chosen] = mean[chosen]
    bn.running_var[chosen] = torch.where(var > 1e-6, var, torch.ones_like(var))[chosen]


def _restart(block: MobileOneBlock, chosen: Tensor, before: Tensor, size: float, generator: torch.Generator) -> None:
    """Fresh kernels for the chosen outputs of a block; their sum has mean 0 and standard deviation 2·`size`.

    A ReLU leaves a bit more than half of that.
    """
    convolutions = [*block.conv_kxk, block.conv_scale]
    for branch in convolutions:
        fresh = torch.empty_like(branch.conv.weight)
        bound = fresh[0].numel() ** -0.5
        fresh.uniform_(-bound, bound, generator=generator)
        branch.conv.weight[chosen] = fresh[chosen]
        _set_statistics(branch.bn, chosen, branch.conv(before))
    _set_statistics(block.identity, chosen, before)
    norms = [*(branch.bn for branch in convolutions), block.identity]
    for bn in norms:
        bn.weight[chosen], bn.bias[chosen] = 1.0, 0.0
    kernel, bias = kernel_and_bias(block)
    factor = 2 * size / _spread(torch.conv2d(before, kernel, bias, padding=1)).clamp(min=1e-6)
    for bn in norms:
        bn.weight[chosen] = factor[chosen]


def _unread(block: MobileOneBlock, chosen: Tensor, before: Tensor) -> None:
    """Make a block ignore the chosen inputs; its function stays, for they were 0."""
    for branch in (*block.conv_kxk, block.conv_scale):
        branch.conv.weight[:, chosen] = 0.0
    identity = block.identity
    gain = identity.weight / torch.sqrt(identity.running_var + identity.eps)
    constant = identity.bias - gain * identity.running_mean
    identity.bias[chosen] = constant[chosen]
    _set_statistics(identity, chosen, before)
    identity.weight[chosen] = 0.0
