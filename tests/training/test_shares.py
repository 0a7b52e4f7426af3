"""Shares of the loss against derivatives written out by hand."""

import copy

import pytest
import scipy.fft
import torch
from torch import nn

from paperlib.data.dataset import Batch
from paperlib.errors import UserError
from paperlib.settings import LossSettings, StudentSettings
from paperlib.student.models import build_model
from paperlib.training.shares import loss_shares


class Scale(nn.Module):
    """Nearest-neighbour upscaling times one weight: every derivative can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.weight * x.repeat_interleave(3, 2).repeat_interleave(3, 3)


def batch(teacher: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = lambda side: torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(image(4), image(12), image(12) if teacher else None, [])


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
    table = loss_shares(Scale(), drawn, settings).set_index("term")
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
    table = loss_shares(model, drawn, LossSettings(charbonnier=1.0, kd=0.2, kd_mid=0.1, kd_p2=0.75), progress=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    error = (model.train()(drawn.lr.float()) - drawn.hr.float()) / 255
    torch.sqrt(error.square() + 1e-6).mean().backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert table["gradient norm"][0] == pytest.approx(float(norm), rel=1e-4)
    assert table["weight"][1] == pytest.approx(0.15)  # λ half-way from kd to kd_mid


def test_a_teacher_is_needed_where_the_loss_distils():
    settings = LossSettings(charbonnier=1.0, kd=0.2)
    with pytest.raises(UserError, match="no teacher"):
        loss_shares(Scale(), batch(teacher=False), settings)
    table = loss_shares(Scale(), batch(teacher=False), settings,
                        teacher=lambda lr: lr.repeat_interleave(3, 2).repeat_interleave(3, 3) / 255)
    assert list(table["term"]) == ["charbonnier", "kd"]
