"""Small networks that several tests share."""

import torch
from torch import nn

from paperlib.quantisation.int8 import QuantisedGraph
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.models import build_model, fuse_model
from paperlib.teacher.network import MambaIRv2Light, TeacherShape

ARCHS = ("mobileone", "repconv", "repdw", "fsrcnn", "abpn")
TINY = {"student.blocks": 1, "student.channels": 4, "student.branches": 2, "data.train_crop": 48,
        "data.valid_crop": 24, "data.max_train": 1, "data.max_valid": 1}
"""Settings of a run of one photograph and a network of one block."""


def deployed(arch: str, blocks: int = 2, channels: int = 8) -> nn.Module:
    """A small fused model whose output is well spread over 0..255."""
    model = build_model(StudentSettings(arch=arch, blocks=blocks, channels=channels)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        if arch == "fsrcnn":
            model.head.weight.mul_(30)
        model.head.bias.add_(100.0)
    return fuse_model(model, clamp=True).eval()


def quantised(fused: nn.Module, images: list, quantiser: str = "tflite", **changes) -> QuantisedGraph:
    """A fused network's quantised graph, calibrated on images and not trained."""
    settings = QuantSettings(quantiser=quantiser, **changes)
    return quantised_graph(prepare_qat(fused, settings, images))


def small_teacher(seed: int = 0) -> MambaIRv2Light:
    """The smallest teacher, of random weights."""
    torch.manual_seed(seed)
    return MambaIRv2Light(TeacherShape(dim=8, groups=1, layers=1, states=3, tokens=6, rank=4)).eval()
