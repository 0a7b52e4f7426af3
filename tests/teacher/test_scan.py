"""The selective scan equals its recurrence: values, all gradients, extremes, threads; and its memory is linear."""

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import numba
import numpy as np
import pytest
import torch

from paperlib.errors import UserError
from paperlib.teacher import scan
from paperlib.teacher.scan import CHUNK, scan_backend, selective_scan

NAMES = ("u", "delta", "a", "b", "c", "skip", "bias")


def draw(rows=2, length=2 * CHUNK + 45, lanes=8, states=3):
    """Random float64 inputs whose states live for many tokens, so that an error at a chunk's edge would show."""
    u, delta = torch.randn(rows, length, lanes).double(), torch.randn(rows, length, lanes).double() - 4
    b, c = torch.randn(2, rows, length, states).double()
    skip, bias = torch.randn(2, lanes).double()
    return [u, delta, -torch.rand(lanes, states).double(), b, c, skip, bias]


def relative(got, wanted):
    return float((got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def outcome(inputs, grad_y, backend):
    """y and the gradient of every input."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = selective_scan(*inputs, backend=backend)
    y.backward(grad_y.to(y.dtype))
    return [y.detach(), *(x.grad for x in inputs)]


def test_golden_values_and_gradients(golden):
    stored = {name: torch.from_numpy(value) for name, value in np.load(golden / "selective_scan.npz").items()}
    tokens_first = lambda x: (x[:, 0] if x.dim() == 4 else x).transpose(1, 2)
    published = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    place = lambda name, x: tokens_first(x) if name in ("u", "delta", "B", "C") else x
    inputs = [place(name, stored[name]).float() for name in published]
    got = outcome(inputs, tokens_first(stored["grad_y"]), "auto")
    wanted = [tokens_first(stored["y"]), *(place(name, stored[f"grad_{name}"]) for name in published)]
    for name, one, other in zip(("y", *published), got, wanted, strict=True):
        assert relative(one, other) < 1e-5, name


@pytest.fixture(scope="module")
def reference():
    """mamba-ssm's own `selective_scan_ref`, without its CUDA kernels and its language models.

    Its installation without GPU and compiler: see `.ci/run`.
    """
    found = importlib.util.find_spec("mamba_ssm")
    if found is None:
        pytest.skip("mamba-ssm is not installed: nothing to compare the scan with")
    package = ModuleType("mamba_ssm")  # its __init__ imports models that need further packages
    package.__path__ = [str(Path(found.origin).parent)]
    stand_ins = {"mamba_ssm": package}
    if importlib.util.find_spec("selective_scan_cuda") is None:
        stand_ins["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    with mock.patch.dict(sys.modules, stand_ins):
        return pytest.importorskip("mamba_ssm.ops.selective_scan_interface", exc_type=ImportError).selective_scan_ref


@pytest.mark.parametrize("backend", ["numba", "loop"])
@pytest.mark.parametrize("length", [1, 2 * CHUNK + 45])
def test_values_and_all_gradients_are_the_published_ones(reference, length, backend):
    inputs = [x.float().requires_grad_() for x in draw(length=length)]
    u, delta, a, b, c, skip, bias = inputs
    grad_y = torch.randn(u.shape)
    u, delta, b, c = (x.transpose(1, 2) for x in (u, delta, b, c))  # channels before tokens
    y = reference(u, delta, a, b, c, skip, delta_bias=bias, delta_softplus=True).transpose(1, 2)
    y.backward(grad_y)
    wanted = [y.detach(), *(x.grad for x in inputs)]
    got = outcome([x.detach() for x in inputs], grad_y, backend)
    for name, one, other in zip(("y", *NAMES), got, wanted, strict=True):
        assert relative(one, other) < 2e-5, name


@pytest.mark.parametrize(("rows", "length"), [
    (2, 2 * CHUNK + 45), (1, 1), (1, CHUNK - 1), (1, CHUNK), (1, CHUNK + 1)])
def test_equals_the_loop_at_any_length(rows, length):
    inputs = draw(rows, length)
    grad_y = torch.randn(inputs[0].shape).double()
    got = outcome([x.float() for x in inputs], grad_y, "numba")
    for name, one, other in zip(("y", *NAMES), got, outcome(inputs, grad_y, "loop"), strict=True):
        assert relative(one, other) < 1e-5, name


def test_the_loop_s_gradient_is_the_recurrence_s():
    inputs = [x.requires_grad_() for x in draw(rows=1, length=5, lanes=2, states=2)]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, backend="loop"), inputs)


def test_softplus_and_decay_at_their_extremes():
    inputs = draw(rows=1, length=64)
    inputs[1] = torch.linspace(-60, 60, inputs[1].numel()).double().view_as(inputs[1])
    inputs[2] *= 50
    got, wanted = (selective_scan(*(x.to(kind) for x in inputs), backend=backend)
                   for kind, backend in ((torch.float32, "numba"), (torch.float64, "loop")))
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_nan_is_not_hidden():
    inputs = [x.float() for x in draw(rows=1, length=20)]
    inputs[0][0, 7, 2] = float("nan")
    y = selective_scan(*inputs)[0]
    assert bool(y[7:, 2].isnan().all())
    assert bool(y[:7].isfinite().all())
    assert bool(y[:, [0, 1, 3]].isfinite().all())


def test_half_precision_is_computed_in_float32():
    inputs = [x.bfloat16() for x in draw(rows=1)]
    y = selective_scan(*inputs)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, selective_scan(*(x.float() for x in inputs)).bfloat16())


def test_memory_kept_for_the_gradient_is_linear_and_small():
    inputs = [x.float().requires_grad_() for x in draw(rows=1, length=4096, lanes=48, states=8)]
    y = selective_scan(*inputs)
    kept = sum(x.numel() for x in y.grad_fn.saved_tensors)
    assert kept < 1.1 * sum(x.numel() for x in inputs)  # all states would be eight times one input


def test_threads_do_not_change_a_bit():
    inputs = [x.float() for x in draw(rows=3)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outcome(inputs, torch.ones_like(inputs[0]), "auto"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_backend_is_named_and_refused_where_there_is_none(monkeypatch):
    assert scan_backend("cpu") == "numba"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for device in ("cuda", "meta"):
        with pytest.raises(UserError, match="mamba-ssm"):
            scan_backend(device)
    inputs = draw()
    inputs[1] = inputs[1][:, 1:]
    with pytest.raises(ValueError, match="shapes"):
        selective_scan(*inputs)


def test_without_a_writable_cache_it_is_compiled_in_memory(monkeypatch, caplog):
    plain = numba.njit

    def njit(**options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return plain(**options)

    monkeypatch.setattr(scan.numba, "njit", njit)
    with caplog.at_level(logging.WARNING):
        add = scan._compiled(lambda x, y: x + y)
    assert add(1.0, 2.0) == 3
    assert "no locator" in caplog.text
