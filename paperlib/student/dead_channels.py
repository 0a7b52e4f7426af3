"""Dead channels of the body, and their new start (ours, not the paper's).

A ReLU whose input is never positive passes no gradient on: the channel is lost for the rest of the
training. `reinitialise` gives such channels fresh kernels and leaves the function as it is.
"""

import torch
from timm.models.byobnet import MobileOneBlock
from torch import Tensor, nn

from paperlib.student.blocks import kernel_and_bias
from paperlib.student.network import Student, with_form

DEAD = 1e-3
"""A channel is dead if its maximum is below this part of its block's median standard deviation."""
LAST_BLOCK = 0.05
"""Size of a new channel of the last block against its neighbours, for the head reads it at once."""


@torch.no_grad()
def _block_maps(student: Student, lr_255: Tensor) -> list[Tensor]:
    """The body's maps on a batch, as deployed: the stem's output, each block's; (B, C, h, w)."""
    fused = student.fused().eval()
    maps = [fused.stem(lr_255)]
    for block in fused.body:
        maps.append(block(maps[-1]))
    return maps


def _spread(images: Tensor) -> Tensor:
    """Standard deviation of each channel, (C,)."""
    return images.transpose(0, 1).flatten(1).std(1)


def _dead(features: Tensor) -> Tensor:
    """Which channels of a block's output (B, C, h, w), never negative, are dead; (C,)."""
    return features.amax((0, 2, 3)) <= DEAD * _spread(features).median()


def find_dead_channels(student: Student, lr_255: Tensor) -> list[list[int]]:
    """Per block the numbers of its dead output channels, on images (B, 3, h, w) in 0..255."""
    return [torch.nonzero(_dead(features)).flatten().tolist()
            for features in _block_maps(student, lr_255)[1:]]


def can_reinitialise(model: nn.Module) -> bool:
    """Whether `reinitialise` knows a network: a student of MobileOne blocks, not fused."""
    return isinstance(model, Student) and all(isinstance(block, MobileOneBlock)
                                              for block in model.body)


@torch.no_grad()
def reinitialise(student: Student, lr_255: Tensor, seed: int) -> tuple[Student, list[int]]:
    """A copy with dead channels re-initialised, and the number of such channels of each block.

    The next block's weights for them are zero. The branches of such a channel get PyTorch's start,
    as large as their block's others (the last block's: `LAST_BLOCK` of that), and the BN statistics
    of the images given.

    `student` is one of those that `can_reinitialise`, `lr_255` images (B, 3, h, w) in 0..255.
    """
    twin, counts = with_form(student, "collapsed"), []
    generator = torch.Generator().manual_seed(seed)
    # one look before anything changes: a new neighbour would raise the others' median
    maps = _block_maps(twin, lr_255)
    found = [(_dead(features), _spread(features)) for features in maps[1:]]
    for index, (block, (dead, spread)) in enumerate(zip(twin.body, found, strict=True)):
        counts.append(int(dead.sum()))
        if not counts[-1]:
            continue
        size = float(spread[~dead].median()) if (~dead).any() else 1.0
        last = index + 1 == len(twin.body)
        _restart(block, dead, maps[index], size * (LAST_BLOCK if last else 1.0), generator)
        maps = _block_maps(twin, lr_255)
        if not last:
            _zero_inputs(twin.body[index + 1], dead, maps[index + 1])
    return with_form(twin, student.form), counts


def _set_statistics(bn: nn.BatchNorm2d, chosen: Tensor, out: Tensor) -> None:
    """BN statistics of the chosen channels from a map (B, C, h, w); without spread variance 1."""
    flat = out.transpose(0, 1).flatten(1)
    mean, var = flat.mean(1), flat.var(1)
    bn.running_mean[chosen] = mean[chosen]
    bn.running_var[chosen] = torch.where(var > 1e-6, var, torch.ones_like(var))[chosen]


def _restart(block: MobileOneBlock, chosen: Tensor, before: Tensor, size: float,
             generator: torch.Generator) -> None:
    """Fresh kernels for the chosen outputs of a block; mean 0, deviation 2·`size` in all, of
    which a ReLU leaves a bit more than half."""
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


def _zero_inputs(block: MobileOneBlock, chosen: Tensor, before: Tensor) -> None:
    """Make a block ignore the chosen inputs; its function stays, for they were 0."""
    for branch in (*block.conv_kxk, block.conv_scale):
        branch.conv.weight[:, chosen] = 0.0
    identity = block.identity
    gain = identity.weight / torch.sqrt(identity.running_var + identity.eps)
    constant = identity.bias - gain * identity.running_mean
    identity.bias[chosen] = constant[chosen]
    _set_statistics(identity, chosen, before)
    identity.weight[chosen] = 0.0
