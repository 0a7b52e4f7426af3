"""The teacher: published weights to the last digits, deterministic routing, trainable routing."""

import json

import numpy as np
import pytest
import torch

from paperlib.data import read_pairs
from paperlib.distill import FILE
from paperlib.errors import UserError
from paperlib.metrics import psnr_rgb, psnr_y
from paperlib.teacher import (
    MambaIRv2Light,
    TeacherShape,
    TeacherUpscaler,
    load_teacher,
    position_index,
    set_routing_noise,
    shift_mask,
)
from paperlib.teacher_blocks import ASSM, softplus

SMALL = TeacherShape(dim=8, groups=1, layers=2, heads=2, window=8, states=4, tokens=8, rank=4)


@pytest.fixture(scope="module")
def published(assets):
    return load_teacher(assets / FILE)


def test_every_recorded_point_of_the_published_network(published, golden):
    reference = np.load(golden / "teacher_small.npz")
    first = published.layers[0].residual_group.layers[0]
    points = {"conv_first": published.conv_first, "group0_layer0_win_mhsa": first.win_mhsa,
              "group0_layer0_assm": first.assm, "group0_layer0": first, "conv_after_body": published.conv_after_body}
    points |= {f"group{number}": group for number, group in enumerate(published.layers)}
    seen: dict[str, torch.Tensor] = {}
    hooks = [module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
             for name, module in points.items()]
    with torch.inference_mode():
        seen["sr"] = published(torch.from_numpy(reference["lr"]))
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        size = max(1.0, np.abs(reference[name]).max())  # group outputs reach several hundred
        assert np.abs(value.numpy() - reference[name]).max() / size <= 1e-4, name


def test_parameters_and_determinism(published):
    assert sum(value.numel() for value in published.parameters()) == 780_587
    image = np.random.default_rng(0).integers(0, 256, (20, 37, 3), dtype=np.uint8)
    upscale = TeacherUpscaler(published)
    assert np.array_equal(upscale(image), upscale(image))
    set_routing_noise(published, True)
    noisy = upscale(image)
    assert upscale.about["routing"] == "Gumbel noise"
    set_routing_noise(published, False)
    assert not np.array_equal(noisy, upscale(image))


def test_set5_scores(published, golden, data_root):
    expected = json.loads((golden / "expected.json").read_text())["teacher, deterministic routing, float32"]["Set5"]
    folder = data_root / "benchmark" / "Set5"
    pairs = read_pairs(folder / "HR", folder / "LR_bicubic" / "X3")
    for index in (1, 2):  # the two smallest that differ in content; `paperlib evaluate teacher` scores all
        sr = TeacherUpscaler(published)(pairs[index].lr)
        assert psnr_rgb(sr, pairs[index].hr) == pytest.approx(expected["per_image_rgb"][index], abs=0.005)
        assert psnr_y(sr, pairs[index].hr) == pytest.approx(expected["per_image_y"][index], abs=0.005)


def test_tiles_leave_no_seam_worth_a_hundredth_of_a_db(published, data_root):
    folder = data_root / "benchmark" / "Set5"
    pair = read_pairs(folder / "HR", folder / "LR_bicubic" / "X3")[1]
    whole, tiled = TeacherUpscaler(published), TeacherUpscaler(published, tile=64, overlap=32)
    assert abs(psnr_rgb(whole(pair.lr), pair.hr) - psnr_rgb(tiled(pair.lr), pair.hr)) <= 0.05


def test_other_weights_are_refused(tmp_path, assets):
    with pytest.raises(UserError, match="no teacher weights"):
        load_teacher(tmp_path / "absent.pth")
    torch.save({"params": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the published teacher"):
        load_teacher(tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit"):
        load_teacher(tmp_path / "other.pth", expected_sha256=None)


def test_position_index_and_shift_mask_by_definition():
    index = position_index(4)
    for one, other in ((0, 0), (0, 15), (15, 0), (6, 9)):
        dy, dx = one // 4 - other // 4 + 3, one % 4 - other % 4 + 3
        assert index[one, other] == dy * 7 + dx
    mask = shift_mask(8, 8, 4, torch.device("cpu"))
    assert mask.shape == (4, 16, 16)
    assert (mask[0] == 0).all()  # nothing wraps round into the first window
    assert mask[3, 0, 15] == -100  # opposite corners of the last window come from opposite borders
    assert mask[3, 0, 5] == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (8, 8), (13, 9)])
def test_any_size_goes_through(size):
    model = MambaIRv2Light(SMALL).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, *size)).shape == (1, 3, 3 * size[0], 3 * size[1])


def test_routing_is_argmax_in_evaluation_and_drawn_with_gradient_in_training():
    module, x = ASSM(8, 4, 8, 4), torch.randn(1, 40, 8)
    module.eval()
    chosen, hot = module.classify(x)
    assert hot is None
    assert torch.equal(chosen, module.route(x).argmax(-1))
    module.train()
    drawn, hot = module.classify(x)
    assert torch.equal(hot.argmax(-1), drawn)
    assert torch.equal(hot.detach().sum(-1).round(), torch.ones(1, 40))
    assert not torch.equal(drawn, module.classify(x)[0])
    (hot * torch.randn_like(hot)).sum().backward()
    assert module.route[0].weight.grad.abs().max() > 0


def test_a_small_network_learns_from_scratch():
    torch.manual_seed(1)
    model, x = MambaIRv2Light(SMALL).train(), torch.rand(2, 3, 16, 16)
    target = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(25):
        loss = (model(x) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(value.grad is not None for value in model.parameters())


def test_softplus_is_pytorchs():
    x = torch.linspace(-60, 60, 1001)
    torch.testing.assert_close(softplus(x), torch.nn.functional.softplus(x, threshold=200), rtol=1e-6, atol=1e-7)
