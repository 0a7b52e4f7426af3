"""Losses against closed forms and scipy, shares against derivatives written out by hand."""

import copy
import math

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import nn

from paperlib.data.dataset import Batch
from paperlib.settings import LossSettings, StudentSettings
from paperlib.student.models import build_model
from paperlib.training.losses import (
    charbonnier,
    confidence,
    dct2,
    dct_l1,
    distillation,
    gradient_shares,
    kd_weight,
    l1,
    stage_loss,
)


def test_l1_and_charbonnier_of_a_constant_offset():
    hr = torch.rand(2, 3, 5, 7)
    assert l1(hr + 0.25, hr).item() == pytest.approx(0.25, abs=1e-6)
    assert charbonnier(hr + 0.25, hr).item() == pytest.approx(math.sqrt(0.25**2 + 1e-6), abs=1e-6)
    assert charbonnier(hr, hr).item() == pytest.approx(1e-3, abs=1e-9)


def test_dct_is_scipys_and_the_orthonormal_one_2_sqrt_nm_times_smaller():
    image = torch.rand(2, 3, 12, 9, dtype=torch.float64)
    for norm, name in (("none", None), ("ortho", "ortho")):
        wanted = scipy.fft.dctn(image.numpy(), type=2, norm=name, axes=(-2, -1))
        np.testing.assert_allclose(dct2(image, norm).numpy(), wanted, atol=1e-10)
    plain, ortho = dct2(image)[..., 1:, 1:], dct2(image, "ortho")[..., 1:, 1:]
    torch.testing.assert_close(ortho, plain / (2 * math.sqrt(12 * 9)))


def test_confidence_follows_the_formula_and_its_limits():
    hr = torch.full((1, 3, 1, 3), 0.5)
    weight = confidence(hr + torch.tensor([0.0, 0.05, 0.4]), hr, LossSettings())
    assert weight.shape == (1, 1, 1, 3)
    torch.testing.assert_close(weight.flatten(), torch.tensor([0.75, math.exp(-0.5), 0.10]))
    teacher = hr + torch.tensor([0.01, -0.02, 0.12]).reshape(1, 3, 1, 1)  # 0.05 over the channels
    for settings, gamma in ((LossSettings(), 10), (LossSettings(gamma=4.0, w_min=0.2, w_max=0.9), 4)):
        weight = confidence(teacher, hr, settings)[0, 0, 0, 0]
        assert weight.item() == pytest.approx(math.exp(-gamma * 0.05), rel=1e-5)


def test_distillation_weighs_clamps_and_stops_gradients():
    sr = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    teacher = torch.full((1, 3, 2, 2), 1.2, requires_grad=True)
    hr = torch.full((1, 3, 2, 2), 0.98)
    loss = distillation(sr, teacher, hr, LossSettings())
    assert loss.item() == pytest.approx(0.75 * 0.5, abs=1e-6)  # target clamped to 1, error 0.02 → weight at its limit
    loss.backward()
    assert teacher.grad is None
    assert distillation(sr, teacher, hr, LossSettings(confidence=False)).item() == pytest.approx(0.5, abs=1e-6)


def test_kd_schedule_has_three_phases():
    settings = LossSettings(kd=0.010, kd_mid=0.005, kd_low=0.01, kd_p1=0.25, kd_p2=0.60)
    assert [kd_weight(settings, t) for t in (0.0, 0.2499)] == [0.010, 0.010]
    assert kd_weight(settings, 0.425) == pytest.approx(0.0075)
    assert kd_weight(settings, 0.5999) == pytest.approx(0.005, abs=1e-5)
    assert [kd_weight(settings, t) for t in (0.60, 1.0)] == [0.01, 0.01]
    assert kd_weight(LossSettings(kd=0.03), 0.9) == 0.03


@pytest.mark.parametrize(("settings", "wanted"), [
    (LossSettings(dct=0.5), lambda sr, hr, _: 0.5 * dct_l1(sr, hr)),
    (LossSettings(dct=0.5, dct_norm="ortho"), lambda sr, hr, _: 0.5 * dct_l1(sr, hr, "ortho")),
    (LossSettings(charbonnier=1.0, dct=0.02, kd=0.03), lambda sr, hr, teacher: (
        charbonnier(sr, hr) + 0.02 * dct_l1(sr, hr)
        + 0.03 * distillation(sr, teacher, hr, LossSettings()))),
    (LossSettings(mse=2.0, kd=0.5, kd_error="l2", confidence=False), lambda sr, hr, teacher: (
        2 * F.mse_loss(sr, hr) + 0.5 * F.mse_loss(sr, teacher)))])
def test_stage_loss_adds_weighted_terms(settings, wanted):
    sr, hr, teacher = (torch.rand(1, 3, 9, 12) for _ in range(3))
    total, parts = stage_loss(settings, sr * 255, hr * 255, teacher, 0.0)
    assert total.item() == pytest.approx(wanted(sr, hr, teacher).item(), rel=1e-4)
    weights = settings.model_dump(include={"l1", "charbonnier", "mse", "dct", "kd"})
    assert set(parts) == {name for name, weight in weights.items() if weight}
    spectrum = scipy.fft.dctn((sr - hr).numpy(), axes=(-2, -1))
    assert dct_l1(sr, hr).item() == pytest.approx(np.abs(spectrum).mean(), rel=1e-4)


class Scale(nn.Module):
    """Nearest-neighbour upscaling times one weight: every derivative can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.weight * x.repeat_interleave(3, 2).repeat_interleave(3, 3)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = lambda side: torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(image(4), image(12), image(12), [])


def test_shares_are_those_of_derivatives_by_hand():
    drawn, settings = batch(), LossSettings(l1=2.0, mse=3.0, dct=0.01, kd=0.5, confidence=False)
    x = drawn.lr.double().repeat_interleave(3, 2).repeat_interleave(3, 3) / 255
    hr, teacher = drawn.hr.double() / 255, drawn.teacher.double() / 255
    error, to_teacher = 0.5 * x - hr, 0.5 * x - teacher
    spectrum, of_x = (torch.from_numpy(scipy.fft.dctn(part.numpy(), axes=(-2, -1))) for part in (error, x))
    values = {"l1": 2 * error.abs().mean(), "mse": 3 * error.square().mean(), "dct": 0.01 * spectrum.abs().mean(),
              "kd": 0.5 * to_teacher.abs().mean()}
    slopes = {"l1": 2 * (error.sign() * x).mean(), "mse": 3 * (2 * error * x).mean(),
              "dct": 0.01 * (spectrum.sign() * of_x).mean(), "kd": 0.5 * (to_teacher.sign() * x).mean()}
    table = gradient_shares(Scale(), drawn, settings).set_index("term")
    assert list(table.index) == list(values)
    for name in values:
        assert table.loc[name, "value share"] == pytest.approx(float(values[name] / sum(values.values())), rel=1e-4)
        assert table.loc[name, "gradient norm"] == pytest.approx(abs(float(slopes[name])), rel=1e-4)
        share = abs(slopes[name]) / sum(abs(slope) for slope in slopes.values())
        assert table.loc[name, "gradient share"] == pytest.approx(float(share), rel=1e-4)


def test_a_students_gradient_norms_are_those_of_backward_and_it_is_not_changed():
    torch.manual_seed(0)
    model = build_model(StudentSettings(blocks=1, channels=4, branches=2))
    before, drawn = copy.deepcopy(model.state_dict()), batch()
    table = gradient_shares(model, drawn, LossSettings(charbonnier=1.0, kd=0.2, kd_mid=0.1, kd_p2=0.75), progress=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    error = (model.train()(drawn.lr.float()) - drawn.hr.float()) / 255
    torch.sqrt(error.square() + 1e-6).mean().backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert table["gradient norm"][0] == pytest.approx(float(norm), rel=1e-4)
    assert table["weight"][1] == pytest.approx(0.15)  # λ half-way from kd to kd_mid
