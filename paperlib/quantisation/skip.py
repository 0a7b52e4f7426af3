"""The global skip without an ADD, so that INT8 does not round it (ours; ETDS's observation on residuals, section 5).

An addition keeps a map alive and makes a device requantise two inputs. A convolution over the concatenation of both
computes the same sum.
"""

from dataclasses import replace

import torch
from torch import Tensor

from paperlib.student.graph import Graph, Node

LARGEST = 2.5
"""Largest weight after a re-scaling; training clips the body's weights at 3 (paper section 4)."""
QUIET = 8.0
"""A channel whose peak is this many times below the map's, or more, is treated as if it were just so many times."""


def skip_input(graph: Graph) -> str:
    """The last block's output, which the global skip adds to the stem's.

    Raises:
        ValueError: a graph without the student's global skip after a convolution with ReLU.
    """
    last = graph["skip"].inputs[0] if "skip" in [node.name for node in graph.nodes] else ""
    if not last or graph[last].op != "conv" or not graph[last].relu:
        raise ValueError("exact_skip is for a student whose global skip starts after a convolution with ReLU")
    return last


def exact_skip(graph: Graph, peak: float, peaks: Tensor | None = None) -> Graph:
    """The student's graph with a global skip that INT8 does not round: the same function, borders included.

    stem(x) is a linear map S of the 27 pixels of a 3×3 patch and a constant. The new stem passes just these on: 27
    kernels with a single 1, and one channel that is 255 inside the image. They lie on the image's own grid, exactly;
    S moves into the kernels of the two readers, the first block and the head. The head then reads
    concat(f, patch, image), and f, which is never negative, is scaled to fill the same 0..255. No ADD is left.

    The image is there twice, as the patch's centre and by itself, because the head passes each pixel on with a weight
    near 1 while its other weights (of the student in the box) stay below 0.4: shared by two inputs it is 0.5, and the
    head's steps are half as large. Channels of f that showed nothing on any calibration image are left out, in the last
    block as in the head, and every three of them make room for the image once more.

    On the authors' stage-2 weights nearly all INT8 noise arises on the two grids of the skip (stem and sum: 0.19 each
    of a mean squared error of 0.45; 0.9 on one bright photograph). Here it is gone: 400 steps of QAT give 31.469 dB on
    Set5 and 27.600 on Set14 (31.446 and 27.590 with ADD; float 31.511 and 27.627), and 0.06 dB below float on large
    photographs, for 6.7 % more MACs (7.6 % with the image read once more and all channels of f). Before QAT it is
    worse (31.23): patch kernels add up over areas, so their rounding must be learnt.

    Args:
        graph: student with FusedConv blocks.
        peak: value of the last block's map that becomes 255; larger ones saturate.
        peaks: (C,), largest value of each channel of that map on calibration images; None: `peak` for all. A channel's
            factor is the geometric mean of what would bring the map's peak to 255 and what would bring its own; its
            kernel stays below `LARGEST`.

    Raises:
        ValueError: see `skip_input`.
    """
    last = skip_input(graph)
    stem, head, writer = graph["stem"], graph["head"], graph[last]
    size = stem.weight.shape[-1]
    mix = torch.cat([stem.weight.flatten(1), stem.bias[:, None] / 255.0], dim=1)  # (C, 28)
    taps = torch.zeros(28, *stem.weight.shape[1:], dtype=stem.weight.dtype)
    taps[:27] = torch.eye(27, dtype=stem.weight.dtype).reshape(27, *stem.weight.shape[1:])
    bias = torch.zeros(28, dtype=stem.bias.dtype)
    bias[27] = 255.0
    peaks = torch.full_like(writer.bias, peak) if peaks is None else peaks
    heard = peaks > 0 if (peaks > 0).any() else torch.ones_like(peaks, dtype=torch.bool)
    copies = 1 + int((~heard).sum()) // 3
    factor = 255.0 / torch.sqrt(peak * peaks.clamp(min=peak / QUIET))
    factor = torch.minimum(factor, LARGEST / writer.weight.abs().amax((1, 2, 3)).clamp(min=1e-6))[heard]
    through = lambda weight: torch.einsum("ocyx,ct->otyx", weight, mix)
    wide = through(head.weight)
    centre = [size * size * colour + size * size // 2 for colour in range(3)]  # of a patch, in the order of the taps
    wide[:, centre] /= 1 + copies
    image, own = graph.nodes[0].name, head.weight[:, heard] / factor.reshape(1, -1, 1, 1)
    swap = {
        "stem": replace(stem, weight=taps, bias=bias),
        last: replace(writer, weight=writer.weight[heard] * factor.reshape(-1, 1, 1, 1),
                      bias=writer.bias[heard] * factor),
        "skip": Node("skip.concat", "concat", (last, "stem", *[image] * copies)),
        "head": replace(head, inputs=("skip.concat",),
                        weight=torch.cat([own, wide, *[wide[:, centre]] * copies], dim=1).contiguous())}
    nodes = [swap.get(node.name, node) for node in graph.nodes]
    return Graph(tuple(replace(node, weight=through(node.weight).contiguous())
                       if node.op == "conv" and node.inputs[0] == "stem" else node for node in nodes))
