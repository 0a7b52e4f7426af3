"""The student and the baselines: their forms, the clamp, the bilinear start."""

import pytest
import torch
import torch.nn.functional as F

from paperlib.settings import StudentSettings
from paperlib.student.baselines import FSRCNN
from paperlib.student.models import build_model, fuse_model
from paperlib.student.network import Student, with_form


def trained_a_little(settings: StudentSettings) -> Student:
    student = Student(settings).train()
    for _ in range(4):
        student(torch.rand(2, 3, 12, 12) * 255)
    return student.eval()


@pytest.mark.parametrize("arch", ["mobileone", "repconv", "repdw"])
def test_fuse_returns_an_equal_copy(arch):
    student, x = trained_a_little(StudentSettings(arch=arch, channels=8, blocks=3)), torch.rand(1, 3, 9, 14) * 255
    fused = fuse_model(student)
    assert student.form == "expanded"
    assert fused.form == "fused"
    with torch.no_grad():
        torch.testing.assert_close(fused(x), student(x), rtol=0, atol=2e-3)
        torch.testing.assert_close(with_form(student, "collapsed")(x), student(x), rtol=0, atol=2e-3)


def test_clamp_is_min_of_relu_and_255():
    student = fuse_model(trained_a_little(StudentSettings(channels=8, blocks=1)))
    x = torch.rand(1, 3, 8, 8) * 255
    with torch.no_grad():
        student.head.bias.add_(torch.linspace(-400, 400, 27))
        free, clamped = student(x), fuse_model(student, clamp=True)(x)
    assert free.min() < 0
    assert free.max() > 255
    torch.testing.assert_close(clamped, free.clamp(0, 255))


def test_bilinear_start_is_bilinear_upscaling():
    student = Student(StudentSettings(init="bilinear"))
    student.body = torch.nn.ModuleList()  # f_N = f_0, so the head sees twice the stem's features
    x = torch.rand(1, 3, 10, 11) * 255
    with torch.no_grad():
        sr = student(x) / 2
    wanted = F.interpolate(x, scale_factor=3, mode="bilinear", align_corners=False)
    torch.testing.assert_close(sr[..., 3:-3, 3:-3], wanted[..., 3:-3, 3:-3], rtol=0, atol=1e-3)


@pytest.mark.parametrize("arch", ["fsrcnn", "abpn"])
def test_a_baselines_bilinear_start_is_bilinear_upscaling(arch):
    """Inside the image; at its border convolutions see zeros where the interpolation repeats the edge."""
    model = build_model(StudentSettings(arch=arch, init="bilinear")).eval()
    lr = torch.rand(1, 3, 9, 11) * 255
    expected = F.interpolate(lr, scale_factor=3, mode="bilinear")
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(model(lr)[inside], expected[inside], rtol=1e-4, atol=1e-2)


def test_fused_fsrcnn_equals_training_form():
    model = FSRCNN(StudentSettings(arch="fsrcnn"))
    torch.nn.init.normal_(model.head.weight, std=0.1)
    torch.nn.init.normal_(model.head.bias, std=5.0)
    x = torch.rand(1, 3, 6, 8) * 255
    fused = fuse_model(model, clamp=True)
    assert (fused.form, model.form) == ("fused", "expanded")
    torch.testing.assert_close(fused(x), model(x).clamp(0, 255), rtol=1e-4, atol=1e-3)
