"""GPTQ before QAT: kernels rounded by what they do to data (Frantar et al., ICLR 2023; not the
paper's).

Columns of a kernel are rounded in turn; the error of each is passed on to those not yet rounded, so
that the output on photographs changes least. Scales stay TFLite's: the largest value of a channel
stays at ±127.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.quantisation.int8 import QW, channel_scales
from paperlib.student.graph import Graph, Images, Node, image_batch, run_graph

DAMPING = 1e-5
"""Added to the diagonal of the input's second moments, as a part of its mean."""
COLUMNS = 20_000
"""Patches of a layer's input taken from one image, at most."""


@torch.no_grad()
def input_moments(graph: Graph, node: Node, images: Images) -> tuple[Tensor, Tensor]:
    """Second moments (K, K) and mean (K,), float64, of the patches (K = I·k·k) a convolution
    reads."""
    total, mean, count = 0.0, 0.0, 0
    size = node.weight.shape[-1]
    for image in images:
        kept: dict[str, Tensor] = {}
        run_graph(graph, image_batch(image),
                  after=lambda at, out, kept=kept: kept.setdefault(at.name, out))
        patches = F.unfold(kept[node.inputs[0]], size, padding=size // 2)[0]  # (K, L)
        patches = patches[:, :: max(1, patches.shape[1] // COLUMNS)].double()
        total, mean = total + patches @ patches.T, mean + patches.sum(1)
        count += patches.shape[1]
    return total / count, mean / count


def rounding_order(matrix: Tensor) -> Tensor:
    """Sorted QR: repeatedly pick the column with the smallest conditional variance given those
    already picked, then reverse (Wübben et al., Electronics Letters 37, 2001): what is left of a
    column's error is what later columns cannot imitate, and the last have none.

    Args:
        matrix: (K, K), positive definite second moments.
    """
    rest, order = matrix.clone(), []
    free = torch.ones(len(matrix), dtype=torch.bool)
    for _ in range(len(matrix)):
        column = int(torch.where(free, rest.diagonal(), torch.inf).argmin())
        order.append(column)
        free[column] = False
        rest -= torch.outer(rest[:, column], rest[column]) / rest[column, column]
    return torch.tensor(order[::-1], device=matrix.device)


def round_kernel(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """The kernel on its int8 grid, each column's error compensated by the columns after it.

    Args:
        weight: (O, K).
        scale: (O,), largest |weight| / 127.
        moments: (K, K), of what is multiplied with it.

    Returns:
        (O, K), whole multiples of `scale` in −127..127, the largest of each row unchanged.
    """
    alive = moments.diagonal() > 0
    damping = DAMPING * moments.diagonal().mean() + 1e-12
    matrix = moments + torch.eye(len(moments), dtype=moments.dtype) * damping
    order = rounding_order(matrix)
    lower = torch.linalg.cholesky(matrix[order][:, order])
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    left, scale = weight[:, order].double(), scale.double()
    largest = torch.zeros_like(left, dtype=torch.bool)
    largest.scatter_(1, left.abs().argmax(1, keepdim=True), True)
    peak = left.sign() * QW
    rounded = torch.zeros_like(left)
    for column in range(left.shape[1]):
        steps = (left[:, column] / scale).round().clamp(-QW, QW)
        steps = torch.where(largest[:, column], peak[:, column], steps)
        rounded[:, column] = steps * scale
        if alive[order[column]]:
            error = (left[:, column] - rounded[:, column]) / upper[column, column]
            left[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return rounded[:, torch.argsort(order)].to(weight.dtype)


def round_to_data(graph: Graph, images: Images) -> Graph:
    """A graph whose ordinary convolutions are rounded, each fitted to what it will read by then.

    The mean error that is left goes into the bias. Grouped convolutions and PReLU stay as they are.
    """
    for name in [node.name for node in graph.nodes if node.op == "conv" and node.groups == 1]:
        node = graph[name]
        moments, mean = input_moments(graph, node, images)
        flat = node.weight.flatten(1)
        rounded = round_kernel(flat, channel_scales(node.weight), moments)
        bias = node.bias + ((flat - rounded).double() @ mean).to(node.bias.dtype)
        graph = graph.with_weights({name: (rounded.reshape(node.weight.shape), bias)})
    return graph
