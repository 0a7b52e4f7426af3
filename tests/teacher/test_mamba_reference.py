"""Our scan against mamba-ssm's own `selective_scan_ref`, an implementation that we did not write.

The package is for CUDA, but its reference is plain PyTorch. It can be installed without a GPU or a compiler:
`MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm einops`.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paperlib.teacher.scan import CHUNK, selective_scan

NAMES = ("u", "delta", "a", "b", "c", "skip", "bias")


@pytest.fixture(scope="module")
def reference():
    """mamba-ssm's `selective_scan_ref`, imported without its CUDA kernels and without the package's language models."""
    found = importlib.util.find_spec("mamba_ssm")
    if found is None:
        pytest.skip("mamba-ssm is not installed: nothing to compare the scan with (this module says how)")
    before = dict(sys.modules)
    try:
        if importlib.util.find_spec("selective_scan_cuda") is None:
            sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
        package = ModuleType("mamba_ssm")  # its __init__ imports models that need further packages
        package.__path__ = [str(Path(found.origin).parent)]
        sys.modules["mamba_ssm"] = package
        try:
            module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        except ImportError as error:
            pytest.skip(f"mamba-ssm is installed but its reference cannot be imported here: {error}")
        yield module.selective_scan_ref
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("mamba_ssm", "selective_scan_cuda"):
                del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name.startswith("mamba_ssm")})


def draw(length: int, rows: int = 2, lanes: int = 6, states: int = 4) -> list[torch.Tensor]:
    """Inputs as the teacher's layers make them: tokens first, steps before softplus, decays below 0."""
    torch.manual_seed(length)
    u, delta = torch.randn(rows, length, lanes), torch.randn(rows, length, lanes) - 2
    b, c = torch.randn(2, rows, length, states)
    return [u, delta, -torch.rand(lanes, states) * 4, b, c, torch.randn(lanes), torch.randn(lanes)]


def published(reference, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The reference on our layout; it wants channels before tokens."""
    u, delta, a, b, c, skip, bias = inputs
    u, delta, b, c = (x.transpose(1, 2) for x in (u, delta, b, c))
    return reference(u, delta, a, b, c, skip, delta_bias=bias, delta_softplus=True).transpose(1, 2)


def outcome(scan, inputs: list[torch.Tensor], slope: torch.Tensor) -> list[torch.Tensor]:
    """y, and the gradient of every input."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = scan(inputs)
    y.backward(slope)
    return [y.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("backend", ["numba", "loop"])
@pytest.mark.parametrize("length", [1, 2 * CHUNK + 45])
def test_values_and_all_gradients_are_the_published_ones(reference, length, backend):
    inputs = draw(length)
    slope = torch.randn(inputs[0].shape)
    wanted = outcome(lambda x: published(reference, x), inputs, slope)
    found = outcome(lambda x: selective_scan(*x, backend=backend), inputs, slope)
    for name, one, other in zip(("y", *NAMES), found, wanted, strict=True):
        error = float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))  # over one token a has no say
        assert error < 2e-5, (name, error)
