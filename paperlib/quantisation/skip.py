"""Other forms of the same graph: without ADD (what a residual costs on a device; paper section 5, ETDS's observation).

An addition keeps a map alive and makes a device requantise two inputs. A convolution over the concatenation of both
inputs computes the same sum: before a convolution its kernel is used for both, after one an identity kernel carries the
other input. In INT8 both inputs then share one grid, and their sum is not rounded again. Measured on the authors'
stage-2 weights (equalised, 400 steps of QAT): Set5 31.454 dB against 31.446 with ADD; 9 % more MACs and CPU time.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from paperlib.settings import SCALE
from paperlib.student.graph import Graph, Node

LARGEST = 2.5
"""Largest weight after a re-scaling; training clips the body's weights at 3 (paper section 4)."""


def _identity(like: Tensor, channels: int, repeats: int = 1) -> Tensor:
    """Kernel (channels·repeats, channels, k, k) that passes each channel on `repeats` times."""
    kernel = torch.zeros(channels, channels, *like.shape[2:], dtype=like.dtype)
    nn.init.dirac_(kernel)
    return kernel.repeat_interleave(repeats, dim=0)


def _sum_into_reader(add: Node, reader: Node) -> tuple[Node, Node]:
    """conv(a + b) as conv over concat(a, b)."""
    concat = Node(f"{add.name}.concat", "concat", add.inputs)
    return concat, replace(reader, inputs=(concat.name,), weight=torch.cat([reader.weight, reader.weight], dim=1))


def _sum_into_writer(graph: Graph, add: Node, writer: Node, other: str) -> tuple[Node, Node]:
    """conv(a) + b as conv over concat(a, b); a `repeat` of b becomes part of the identity kernel."""
    node = graph[other]
    repeats = SCALE**2 if node.op == "repeat" else 1
    carried = node.inputs[0] if node.op == "repeat" else other
    concat = Node(f"{add.name}.concat", "concat", (writer.inputs[0], carried))
    kernel = torch.cat([writer.weight, _identity(writer.weight, writer.weight.shape[0] // repeats, repeats)], dim=1)
    return concat, replace(writer, name=add.name, inputs=(concat.name,), weight=kernel, relu=add.relu)


def without_add(graph: Graph) -> Graph:
    """The same function without any ADD, as a new graph; every sum becomes a concatenation and a wider convolution.

    Raises:
        ValueError: a sum that neither follows nor feeds exactly one ordinary convolution.
    """
    for add in [node for node in graph.nodes if node.op == "add"]:
        readers = graph.consumers(add.name)
        writers = [graph[name] for name in add.inputs
                   if graph[name].op == "conv" and not graph[name].relu and graph[name].groups == 1
                   and len(graph.consumers(name)) == 1]
        if len(readers) == 1 and readers[0].op == "conv" and readers[0].groups == 1 and not add.relu:
            swap = {add.name: _sum_into_reader(add, readers[0])[:1], readers[0].name: (
                _sum_into_reader(add, readers[0])[1],)}
        elif writers:
            other = next(name for name in add.inputs if name != writers[0].name)
            swap = {writers[0].name: (), add.name: _sum_into_writer(graph, add, writers[0], other)}
            if graph[other].op == "repeat":
                swap[other] = ()
        else:
            raise ValueError(f"the sum {add.name} is not beside a convolution that could carry it")
        graph = Graph(tuple(new for node in graph.nodes for new in swap.get(node.name, (node,))))
    return graph


def exact_skip(graph: Graph, peak: float) -> Graph:
    """The student's graph with a global skip that INT8 does not round: the same function, borders included.

    stem(x) is a linear map S of the 27 pixels of a 3×3 patch and a constant. The new stem passes just these on: 27
    kernels with a single 1, and one channel that is 255 inside the image. They lie on the image's own grid, exactly;
    S moves into the kernels of the two readers, the first block and the head. The head then reads
    concat(f, patch), and f, which is never negative, is scaled to fill the same 0..255. No ADD is left.

    On the authors' stage-2 weights nearly all INT8 noise arises on the two grids of the skip (stem and sum: 0.19 each
    of a mean squared error of 0.45; 0.9 on one bright photograph). Here it is gone: 400 steps of QAT give 31.469 dB on
    Set5 and 27.600 on Set14 (31.446 and 27.590 with ADD; float 31.511 and 27.627), and 0.06 dB below float on large
    photographs, for 6.7 % more MACs. Before QAT it is worse (31.23): patch kernels add up over areas, so their rounding
    must be learnt.

    Args:
        graph: student with FusedConv blocks.
        peak: value of the last block's map that becomes 255 where its kernel stays below `LARGEST`; larger saturate.

    Raises:
        ValueError: a graph without the student's global skip after a convolution with ReLU.
    """
    names = [node.name for node in graph.nodes]
    last = graph["skip"].inputs[0] if "skip" in names else ""
    if not last or graph[last].op != "conv" or not graph[last].relu:
        raise ValueError("exact_skip is for a student whose global skip starts after a convolution with ReLU")
    stem, head, writer = graph["stem"], graph["head"], graph[last]
    mix = torch.cat([stem.weight.flatten(1), stem.bias[:, None] / 255.0], dim=1)  # (C, 28)
    taps = torch.zeros(28, *stem.weight.shape[1:], dtype=stem.weight.dtype)
    taps[:27] = torch.eye(27, dtype=stem.weight.dtype).reshape(27, *stem.weight.shape[1:])
    bias = torch.zeros(28, dtype=stem.bias.dtype)
    bias[27] = 255.0
    factor = min(255.0 / peak, LARGEST / float(writer.weight.abs().max()))
    through = lambda weight: torch.einsum("ocyx,ct->otyx", weight, mix)
    swap = {
        "stem": replace(stem, weight=taps, bias=bias),
        last: replace(writer, weight=writer.weight * factor, bias=writer.bias * factor),
        "skip": Node("skip.concat", "concat", (last, "stem")),
        "head": replace(head, inputs=("skip.concat",),
                        weight=torch.cat([head.weight / factor, through(head.weight)], dim=1).contiguous())}
    nodes = [swap.get(node.name, node) for node in graph.nodes]
    return Graph(tuple(replace(node, weight=through(node.weight).contiguous())
                       if node.op == "conv" and node.inputs[0] == "stem" else node for node in nodes))
