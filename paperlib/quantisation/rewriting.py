"""What a float graph becomes before QAT (ours, not the paper's): channels equalised, a global skip
that INT8 does not round, kernels rounded to data. Each is a graph of the same function, the last up
to its rounding."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.quantisation.int8 import QW, channel_scales, tied
from paperlib.student.graph import SHARES_GRID, Graph, Images, Node, image_batch, run_graph

LIMIT = 8.0  # largest factor and its inverse
DEAD = 1e-3
"""Channels below this part of the group's largest value keep their factor: magnified, their weights
would grow without bound."""
ROUNDS = 3
"""Repeats, because re-scaling one group changes the weights that the next is balanced against."""
LARGEST = 2.5
"""Largest weight after a re-scaling; training clips the body's weights at 3 (paper section 4)."""
QUIET = 8.0  # channel peaks are clamped to at least the feature map's peak / QUIET
DAMPING = 1e-5  # added to the diagonal of the input's second moments, as a part of its mean
COLUMNS = 20_000  # patches of a layer's input taken from one image, at most


def scale_groups(graph: Graph) -> dict[str, str]:
    """For every tensor, the first of the group that must share its channel factors; groups that
    hold the image or a result are absent."""
    groups = tied(graph, ("prelu", "add", *SHARES_GRID))
    fixed = {groups[node.name] for node in graph.nodes
             if node.op in ("input", "repeat", "concat", "depth_to_space")}
    return {name: first for name, first in groups.items() if first not in fixed}


@torch.no_grad()
def channel_peaks(graph: Graph, groups: dict[str, str], images: Images) -> dict[str, Tensor]:
    """Largest |value| of each channel, (C,), over all images and the tensors of a group (`groups`:
    tensor → group)."""
    peaks: dict[str, Tensor] = {}

    def after(node: Node, out: Tensor) -> Tensor:
        if name := groups.get(node.name):
            peak = out.abs().amax((0, 2, 3))
            peaks[name] = torch.maximum(peaks.get(name, peak), peak)
        return out

    for image in images:
        run_graph(graph, image_batch(image), after=after)
    return peaks


def channel_factors(graph: Graph, images: Images) -> dict[str, Tensor]:
    """Per group (its first tensor's name) the factor of each channel, (C,), geometric mean 1 over
    the channels that carry a signal."""
    groups = scale_groups(graph)
    factors = {}
    for name, peak in channel_peaks(graph, groups, images).items():
        readers = [node for node in graph.nodes
                   if node.op == "conv" and groups.get(node.inputs[0]) == name]
        weight = torch.stack([node.weight.abs().amax((0, 2, 3) if node.groups == 1 else (1, 2, 3))
                              for node in readers]).amax(0)
        log = 0.5 * weight.clamp(min=1e-6).log() - 0.5 * peak.clamp(min=1e-6).log()
        alive = peak > DEAD * peak.max()
        log = torch.where(alive, log - log[alive].mean(), 0.0)
        factors[name] = log.clamp(-np.log(LIMIT), np.log(LIMIT)).exp()
    return factors


def rescale(graph: Graph, factors: dict[str, Tensor]) -> Graph:
    """The same function with every grouped channel `factors` times as large, as a new graph."""
    groups = scale_groups(graph)
    changed = {}
    for node in graph.nodes:
        if node.op == "conv":
            weight, bias = node.weight, node.bias
            if node.name in groups:
                factor = factors[groups[node.name]]
                weight, bias = weight * factor.reshape(-1, 1, 1, 1), bias * factor
            if node.inputs[0] in groups:
                factor = factors[groups[node.inputs[0]]]
                shape = (-1, 1, 1, 1) if node.groups > 1 else (1, -1, 1, 1)
                weight = weight / factor.reshape(shape)
            changed[node.name] = (weight, bias)
    return graph.with_weights(changed)


def equalise(graph: Graph, images: Images) -> Graph:
    """An equal graph whose channels fit one INT8 grid each better (Nagel et al., ICCV 2019).

    ReLU, PReLU and addition commute with a positive factor per channel: a channel may leave one
    convolution s times larger if the next one reads it s times smaller. On the authors' stage-2
    weights plain post-training INT8 rises from 31.37 to 31.41 dB RGB on Set5.
    """
    for _ in range(ROUNDS):
        graph = rescale(graph, channel_factors(graph, images))
    return graph


def skip_input(graph: Graph) -> str:
    """The last block's output, which the global skip adds to the stem's; a ValueError without."""
    last = graph["skip"].inputs[0] if "skip" in [node.name for node in graph.nodes] else ""
    if not last or graph[last].op != "conv" or not graph[last].relu:
        raise ValueError("exact_skip is for a student whose global skip starts after a convolution "
                         "with ReLU")
    return last


def exact_skip(graph: Graph, peak: float, peaks: Tensor) -> Graph:
    """The student's graph with a global skip that INT8 does not round: a convolution over the
    concatenation of both maps in place of the sum (after ETDS, CVPR 2023).

    stem(x) is linear in the 27 pixels of a 3×3 patch and a constant. The new stem passes just these
    on: 27 kernels with a single 1, and one channel that is 255 inside the image, all exactly on the
    image's grid. The old stem moves into the kernels of its two readers, the first block and the
    head. The head reads concat(f, patch, image), where f, the last block's output, is scaled to
    fill 0..255. No ADD is left.

    The image is read twice, as the patch's centre and by itself: the head passes each pixel on with
    a weight near 1 while its others stay below 0.4, so halving it halves the head's steps. Channels
    of f that are 0 on all calibration images are left out; every three make room for the image once
    more.

    On the authors' stage-2 weights 400 steps of QAT give 31.469 dB on Set5 (31.446 with ADD, 31.511
    in float), for 6.7 % more MACs; before QAT it is worse (31.23).

    Args:
        peak: value of f that becomes 255; larger ones saturate.
        peaks: (C,), largest value of each channel of f on calibration images. A channel's factor
            is the geometric mean of 255 / peak and 255 / its own peak; its kernel stays below
            `LARGEST`.
    """
    last = skip_input(graph)
    stem, head, writer = graph["stem"], graph["head"], graph[last]
    size = stem.weight.shape[-1]
    mix = torch.cat([stem.weight.flatten(1), stem.bias[:, None] / 255.0], dim=1)  # (C, 28)
    taps = torch.zeros(28, *stem.weight.shape[1:], dtype=stem.weight.dtype)
    taps[:27] = torch.eye(27, dtype=stem.weight.dtype).reshape(27, *stem.weight.shape[1:])
    bias = torch.zeros(28, dtype=stem.bias.dtype)
    bias[27] = 255.0
    heard = peaks > 0 if (peaks > 0).any() else torch.ones_like(peaks, dtype=torch.bool)
    copies = 1 + int((~heard).sum()) // 3
    factor = 255.0 / torch.sqrt(peak * peaks.clamp(min=peak / QUIET))
    limit = LARGEST / writer.weight.abs().amax((1, 2, 3)).clamp(min=1e-6)
    factor = torch.minimum(factor, limit)[heard]
    through = lambda weight: torch.einsum("ocyx,ct->otyx", weight, mix)
    wide = through(head.weight)
    centre = [size**2 * colour + size**2 // 2 for colour in range(3)]  # of a patch, among the taps
    wide[:, centre] /= 1 + copies
    image, own = graph.nodes[0].name, head.weight[:, heard] / factor.reshape(1, -1, 1, 1)
    swap = {
        "stem": replace(stem, weight=taps, bias=bias),
        last: replace(writer, weight=writer.weight[heard] * factor.reshape(-1, 1, 1, 1),
                      bias=writer.bias[heard] * factor),
        "skip": Node("skip.concat", "concat", (last, "stem", *[image] * copies)),
        "head": replace(head, inputs=("skip.concat",),
                        weight=torch.cat([own, wide, *[wide[:, centre]] * copies], 1).contiguous())}
    nodes = [swap.get(node.name, node) for node in graph.nodes]
    return Graph(tuple(replace(node, weight=through(node.weight).contiguous())
                       if node.op == "conv" and node.inputs[0] == "stem" else node
                       for node in nodes))


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
    """Sorted QR of positive definite second moments (K, K): repeatedly pick the column with the
    smallest conditional variance given those already picked, then reverse (Wübben et al.,
    Electronics Letters 37, 2001): later columns imitate most of a column's error."""
    rest, order = matrix.clone(), []
    free = torch.ones(len(matrix), dtype=torch.bool)
    for _ in range(len(matrix)):
        column = int(torch.where(free, rest.diagonal(), torch.inf).argmin())
        order.append(column)
        free[column] = False
        rest -= torch.outer(rest[:, column], rest[column]) / rest[column, column]
    return torch.tensor(order[::-1], device=matrix.device)


def round_kernel(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """A kernel (O, K) in whole multiples, −127..127, of `scale` (O,), its largest |weight| / 127;
    each column's error compensated by the columns after it, the largest of each row unchanged.

    `moments` (K, K) are of what is multiplied with it.
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
    """A graph whose ordinary convolutions are rounded, each fitted to what it will read by then
    (GPTQ, Frantar et al., ICLR 2023). Scales stay TFLite's.

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
