"""FSRCNN and ABPN: published sizes, the anchor, and the transposed convolution as sub-pixel convolution."""

import pytest
import torch
import torch.nn.functional as F

from paperlib.settings import StudentSettings
from paperlib.student.baselines import ABPN, FSRCNN
from paperlib.student.models import build_model, fuse_model
from paperlib.student.network import count_parameters


def test_published_parameter_counts():
    assert count_parameters(build_model(StudentSettings(arch="fsrcnn"))) == 24_683
    assert count_parameters(build_model(StudentSettings(arch="abpn"))) == 42_539


def test_fused_fsrcnn_equals_training_form():
    model = FSRCNN(StudentSettings(arch="fsrcnn"))
    torch.nn.init.normal_(model.head.weight, std=0.1)
    torch.nn.init.normal_(model.head.bias, std=5.0)
    x = torch.rand(1, 3, 6, 8) * 255
    fused = fuse_model(model, clamp=True)
    assert fused.form == "fused"
    assert model.form == "expanded"
    torch.testing.assert_close(fused(x), model(x).clamp(0, 255), rtol=1e-4, atol=1e-3)


def test_abpn_without_weights_is_nearest_neighbour_upscaling():
    model = ABPN(StudentSettings(arch="abpn"))
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    x = torch.rand(1, 3, 4, 5) * 255
    torch.testing.assert_close(model(x), F.interpolate(x, scale_factor=3, mode="nearest"))


@pytest.mark.parametrize("arch", ["fsrcnn", "abpn"])
def test_a_bilinear_start_is_bilinear_upscaling(arch):
    """Inside the image; at its border convolutions see zeros where the interpolation repeats the edge."""
    model = build_model(StudentSettings(arch=arch, init="bilinear")).eval()
    lr = torch.rand(1, 3, 9, 11) * 255
    expected = F.interpolate(lr, scale_factor=3, mode="bilinear")
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(model(lr)[inside], expected[inside], rtol=1e-4, atol=1e-2)
