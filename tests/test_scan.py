"""The scan against its recurrence: outputs and every gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paperlib import scan
from paperlib.scan import scan_backend, selective_scan


def inputs(length: int, dtype: torch.dtype = torch.float64, batch: int = 2, lanes: int = 6, states: int = 4):
    shapes = {"u": (batch, length, lanes), "delta": (batch, length, lanes), "a": (lanes, states),
              "b": (batch, length, states), "c": (batch, length, states), "skip": (lanes,)}
    values = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    values["delta"], values["a"] = F.softplus(values["delta"] - 2), -torch.exp(values["a"])
    return {name: value.requires_grad_() for name, value in values.items()}


@pytest.mark.parametrize("length", [1, 7, 100])
def test_numba_equals_the_recurrence_across_chunks(length, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 16)  # several chunks, the last one ragged
    one = inputs(length)
    two = {name: value.detach().clone().requires_grad_() for name, value in one.items()}
    fast, slow = selective_scan(**one), selective_scan(**two, backend="loop")
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(fast)
    (fast * weight).sum().backward()
    (slow * weight).sum().backward()
    for name, value in one.items():
        torch.testing.assert_close(value.grad, two[name].grad, rtol=1e-8, atol=1e-9, msg=name)


def test_gradients_pass_finite_differences(monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 4)
    values = inputs(9, batch=1, lanes=3, states=2)
    assert torch.autograd.gradcheck(selective_scan, tuple(values.values()), atol=1e-6)


def test_published_reference_with_gradients(golden):
    reference = {name: torch.from_numpy(value) for name, value in np.load(golden / "selective_scan.npz").items()}
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    x = {name: reference[name].float().clone().requires_grad_() for name in names}
    delta = F.softplus(x["delta"] + x["delta_bias"][:, None]).transpose(1, 2)
    b, c = x["B"][:, 0].transpose(1, 2), x["C"][:, 0].transpose(1, 2)
    y = selective_scan(x["u"].transpose(1, 2), delta, x["A"], b, c, x["D"]).transpose(1, 2)
    y.backward(reference["grad_y"].float())
    results = {"y": y} | {f"grad_{name}": value.grad for name, value in x.items()}
    for name, value in results.items():
        error = (value - reference[name]).abs().max() / reference[name].abs().max()
        assert error < 1e-5, f"{name}: {error:.1e}"


def test_half_precision_is_scanned_in_float32():
    values = {name: value.detach() for name, value in inputs(50, torch.float32).items()}
    y = selective_scan(**{name: value.half() for name, value in values.items()})
    rounded = {name: value.half().float() for name, value in values.items()}
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), selective_scan(**rounded), rtol=1e-3, atol=1e-3)


def test_backends_are_named_and_never_swapped():
    assert scan_backend("cpu") == "numba"
    with pytest.raises(ValueError, match="unknown scan backend"):
        selective_scan(**inputs(2), backend="magic")
    with pytest.raises(RuntimeError, match="no selective scan"):
        scan_backend("mps")
