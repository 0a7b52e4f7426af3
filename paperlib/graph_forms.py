"""Other forms of the same graph: without ADD (what a residual costs on a device; paper section 5, ETDS's observation).

An addition keeps a map alive and makes a device requantise two inputs. A convolution over the concatenation of both
inputs computes the same sum: before a convolution its kernel is used for both, after one an identity kernel carries the
other input. In INT8 both inputs then share one grid, and their sum is not rounded again. Measured on the authors'
stage-2 weights (equalised, 400 steps of QAT): Set5 31.454 dB against 31.446 with ADD; 9 % more MACs and CPU time.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from paperlib.graph import Graph, Node
from paperlib.student import SCALE


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
