"""Rounding to data: on the grid, with TFLite's scales, and closer to the float layer than rounding to nearest."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ARCHS, deployed, quantised
from skimage.data import chelsea

from paperlib.data.resize import bicubic_downscale
from paperlib.quantisation.int8 import channel_scales, fake_quant_weight
from paperlib.quantisation.rewriting import round_kernel, round_to_data, rounding_order
from paperlib.student.graph import image_batch, run_graph
from paperlib.student.models import deployment_graph

IMAGE = bicubic_downscale(chelsea()[:240, :300])


def problem(rows: int = 6, columns: int = 40):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(columns, 8, generator=generator) @ torch.randn(8, 500, generator=generator) + 3
    x += 0.1 * torch.randn(columns, 500, generator=generator)
    return weight, x.double()


def test_a_kernel_is_on_its_grid_and_keeps_the_output_better_than_rounding_to_nearest():
    weight, x = problem()
    scale = channel_scales(weight)
    rounded = round_kernel(weight, scale, x @ x.T / 500)
    torch.testing.assert_close(fake_quant_weight(rounded, scale), rounded, rtol=0, atol=1e-6)
    torch.testing.assert_close(channel_scales(rounded), scale)
    error = lambda kernel: float(((kernel - weight).double() @ x).square().mean())
    nearest = (weight / scale[:, None]).round() * scale[:, None]
    assert error(rounded) < 0.2 * error(nearest)


def test_last_come_the_columns_that_vary_least_once_the_later_ones_are_known():
    """A loud copy of a quiet column has little of its own, so it comes after a column of middle size."""
    quiet, middle, own = torch.diag(torch.tensor([10.0, 50.0, 1.0], dtype=torch.float64))
    loud = 3 * quiet + own
    columns = torch.stack([loud, middle, quiet])
    variances = torch.diag(torch.tensor([0.1, 0.02, 1.0], dtype=torch.float64))  # moments 91/…: 10, 50, 9·10 + 1
    moments = columns @ variances @ columns.T
    assert moments.diagonal().argsort(descending=True).tolist() == [0, 1, 2]
    assert rounding_order(moments).tolist() == [1, 0, 2]


def test_a_copy_takes_over_nearly_the_whole_error():
    """0.49 of a step goes to a column of correlation 0.9999: 5.0125 becomes 5.5024; damped by 1 %, 5.4976."""
    moments = torch.tensor([[1, 0.9999, 0], [0.9999, 1, 0], [0, 0, 1]], dtype=torch.float64)
    weight = torch.tensor([[5.0125, 10.49, 127.0]])
    assert round_kernel(weight, torch.ones(1), moments).tolist() == [[6.0, 10.0, 127.0]]


def test_the_bias_takes_over_what_rounding_changes_on_average():
    graph = deployment_graph(deployed("mobileone"))
    stem, fitted = graph["stem"], round_to_data(graph, [IMAGE[:40, :50]])["stem"]
    means = [F.conv2d(image_batch(IMAGE[:40, :50]), node.weight, node.bias, padding=1).mean((0, 2, 3))
             for node in (stem, fitted)]
    assert not torch.equal(stem.weight, fitted.weight)
    torch.testing.assert_close(means[1], means[0], rtol=0, atol=2e-3)


def test_uncorrelated_inputs_are_rounded_to_nearest():
    weight, _ = problem()
    scale = channel_scales(weight)
    nearest = (weight / scale[:, None]).round() * scale[:, None]
    torch.testing.assert_close(round_kernel(weight, scale, torch.eye(40, dtype=torch.float64)), nearest)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_network_rounded_to_a_photograph_stays_closer_to_itself(arch):
    graph = deployment_graph(deployed(arch))
    x = image_batch(IMAGE)
    exact = run_graph(graph, x)

    def error(weights) -> float:
        return float((run_graph(graph.with_weights(weights), x) - exact).square().mean())

    nearest, fitted = {}, {}
    for node, new in zip(graph.nodes, round_to_data(graph, [IMAGE]).nodes, strict=True):
        if node.op == "conv" and node.groups == 1:
            nearest[node.name] = (fake_quant_weight(node.weight, channel_scales(node.weight)), node.bias)
            fitted[node.name] = (fake_quant_weight(new.weight, channel_scales(new.weight)), new.bias)
            torch.testing.assert_close(fitted[node.name][0], new.weight, rtol=0, atol=1e-6)
    assert error(fitted) < error(nearest)


def test_the_quantiser_starts_from_it():
    fused = deployed("mobileone")
    plain, head = (quantised(fused, [IMAGE], skip="exact", rounding=rounding).graph["head"].weight
                   for rounding in ("nearest", "data"))
    assert not np.allclose(head, plain)
    torch.testing.assert_close(fake_quant_weight(head, channel_scales(head)), head, rtol=0, atol=1e-6)
