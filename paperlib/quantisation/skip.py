"""The global skip as a concatenation, so that INT8 does not round it (ours; after ETDS, CVPR 2023).

A convolution over the concatenation of both maps computes the sum of their convolutions.
"""

from dataclasses import replace

import torch
from torch import Tensor

from paperlib.student.graph import Graph, Node

LARGEST = 2.5
"""Largest weight after a re-scaling; training clips the body's weights at 3 (paper section 4)."""
QUIET = 8.0
"""Channel peaks are clamped to at least the feature map's peak / QUIET."""


def skip_input(graph: Graph) -> str:
    """The last block's output, which the global skip adds to the stem's; a ValueError without."""
    last = graph["skip"].inputs[0] if "skip" in [node.name for node in graph.nodes] else ""
    if not last or graph[last].op != "conv" or not graph[last].relu:
        raise ValueError("exact_skip is for a student whose global skip starts after a convolution "
                         "with ReLU")
    return last


def exact_skip(graph: Graph, peak: float, peaks: Tensor) -> Graph:
    """The student's graph with a global skip that INT8 does not round: the same function.

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
        graph: student with FusedConv blocks.
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
