"""Silent channels: found, revived without a change of the function, trained again; other networks are refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from paperlib.settings import StudentSettings
from paperlib.student.dead_channels import can_reinitialise, find_dead_channels, reinitialise
from paperlib.student.models import build_model, fuse_model, read_published
from paperlib.student.network import with_form

DEAD = {0: [1, 4], 1: [2], 2: [], 3: [5]}


def patches() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return F.interpolate(torch.rand(6, 3, 9, 9, generator=generator) * 255, size=27, mode="bilinear")


@pytest.fixture
def student():
    """A collapsed student of four blocks, some of whose channels are silenced by their BN's shift."""
    torch.manual_seed(3)
    model = build_model(StudentSettings(channels=8, blocks=4, branches=2)).eval()
    for block, channels in DEAD.items():
        for channel in channels:
            model.body[block].identity.bias.data[channel] = -1e6
    return with_form(model, "collapsed")


def test_dead_channels_are_found(student):
    assert find_dead_channels(student, patches()) == list(DEAD.values())
    assert find_dead_channels(fuse_model(student), patches()) == list(DEAD.values())
    block = student.body[2]  # a constant channel passes its gradient on, so it is none
    for bn in (*(branch.bn for branch in block.conv_kxk), block.conv_scale.bn, block.identity):
        bn.weight.data[6], bn.bias.data[6] = 0.0, 2.0
    assert find_dead_channels(student, patches()) == list(DEAD.values())


@pytest.mark.parametrize(("part", "dead"), [(0.5e-3, [6]), (2e-3, [])])
def test_a_channel_is_dead_below_a_thousandth_of_its_blocks_spread(student, part, dead):
    fused = fuse_model(student)
    with torch.no_grad():
        features = fused.body[1](fused.body[0](fused.stem(patches())))
        spread = features.transpose(0, 1).flatten(1).std(1)
        spread[6] = 0
        fused.body[2].conv.weight.zero_()
        fused.body[2].conv.bias.fill_(0)
        for channel in range(8):  # the block passes on a channel that is wide awake
            fused.body[2].conv.weight[channel, int(spread.argmax()), 1, 1] = 1.0
        fused.body[2].conv.weight[6] *= part * float(spread.max()) / float(features[:, spread.argmax()].max())
    assert find_dead_channels(fused, patches())[2] == dead


def test_revived_channels_carry_a_signal_and_the_function_stays(student):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    twin, counts = reinitialise(student, patches(), seed=1)
    assert counts == [2, 1, 0, 1]
    assert find_dead_channels(twin, patches()) == [[], [], [], []]
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    with torch.no_grad():
        # all but the last block's: nobody reads them; on other photographs too
        x = patches().flip(0, 2)
        features, other = student.stem(x), twin.stem(x)
        for index in range(3):
            features, other = (fuse_model(model).body[index](maps)
                               for model, maps in ((student, features), (twin, other)))
            kept = [c for c in range(8) if c not in DEAD[index]]
            torch.testing.assert_close(other[:, kept], features[:, kept], rtol=1e-4, atol=1e-3)
            assert all(other[:, channel].std() > 0 for channel in DEAD[index])


def test_the_last_block_starts_small(student):
    last = {3: [5]}
    for block in range(3):
        for channel in DEAD[block]:
            student.body[block].identity.bias.data[channel] = 0.0
    twin, counts = reinitialise(student, patches(), seed=1)
    assert counts == [0, 0, 0, 1]
    maps = {}
    for name, model in (("before", student), ("after", twin)):
        fused = fuse_model(model)
        fused.body[3].register_forward_hook(lambda *call, name=name: maps.update({name: call[2]}))
        with torch.no_grad():
            fused(patches())
    spread = maps["after"].transpose(0, 1).flatten(1).std(1)
    neighbours = maps["before"].transpose(0, 1).flatten(1).std(1)[[c for c in range(8) if c not in last[3]]].median()
    assert 0.01 * neighbours < spread[5] < 0.15 * neighbours


def test_gradient_reaches_revived_channels(student):
    """Through a silent channel none passes; after the revival the kernels that read it move, then it does."""
    target = patches().repeat_interleave(3, 2).repeat_interleave(3, 3)
    twin, _ = reinitialise(student, patches(), seed=1)
    for model, moves in ((student, False), (twin, True)):
        model.zero_grad()
        (model(patches()) - target).square().mean().backward()
        reader = model.body[1].conv_kxk[0].conv.weight.grad[:, DEAD[0]]
        assert (reader.abs().amax() > 0) == moves


def test_equal_seeds_give_equal_kernels(student):
    first, second, other = (reinitialise(student, patches(), seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("arch", ["repconv", "repdw"])
def test_other_blocks_are_refused(arch):
    model = build_model(StudentSettings(channels=8, blocks=2, arch=arch))
    assert find_dead_channels(model, patches()) == [[], []]
    assert not can_reinitialise(model)


def test_no_channel_of_the_authors_student_is_silent(assets, data_root):
    student = read_published(assets / "aio_mai" / "ckpt_best_s2_deploy.pt")
    photographs = sorted((data_root / "benchmark" / "Set5" / "HR").glob("*.png"))
    assert len(photographs) == 5
    for path in photographs:
        hr = np.asarray(Image.open(path).convert("RGB"))
        lr = torch.tensor(hr[::3, ::3].copy()).permute(2, 0, 1)[None].float()
        assert find_dead_channels(student, lr) == [[]] * 8
