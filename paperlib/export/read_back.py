"""The quantised graph read back out of an INT8 .tflite file, so that a shipped file can be exported in other forms.

The file is all there is: 8-bit kernels, 32-bit biases and the grids stand in it. Reading and exporting again gives the
same integers (paper section 5); a bias of more than 2^22 steps may come back one step off, but no shipped one does.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperlib.errors import UserError
from paperlib.export.convert import equal_share, export_all, parity_images
from paperlib.export.flatbuffer import FileGraph, FileOperator, FileTensor, read_graph
from paperlib.export.tf_graph import before_shuffle
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import sha256_file, write_json
from paperlib.quantisation.int8 import QParams, QuantisedGraph, qparam_owners
from paperlib.quantisation.qat import read_quantised
from paperlib.settings import SCALE, ExportSettings
from paperlib.student.graph import Graph, Node
from paperlib.weights import FOLDER, pretrained

QAT = "qat.safetensors"
"""The quantised checkpoint that a box may hold beside its files."""


def shipped_graph(folder: Path = FOLDER) -> QuantisedGraph:
    """Graph and grids of the student in the box: of its quantised checkpoint if it has one, else of its INT8 file.

    Raises:
        UserError: a missing or damaged file.
    """
    checkpoint = folder / QAT
    return read_quantised(checkpoint) if checkpoint.is_file() else read_back(pretrained(folder=folder))


def export_named(
    name: str | Path, folder: str | Path, settings: ExportSettings, pixels: str | None = None,
) -> dict[str, Any]:
    """`export_all` for a checkpoint, or for "pretrained": the student in the box.

    For the latter `export.json` also says, under `box`, in what share of values the box's own file agrees.

    Args:
        pixels: "int8" or "uint8"; None: both for the student in the box, int8 for a checkpoint.

    Raises:
        UserError: a missing or damaged file, or a folder that cannot be written.
    """
    shipped = str(name) == "pretrained"
    qgraph = shipped_graph() if shipped else read_quantised(name)
    kinds = (pixels,) if pixels else ("int8", "uint8") if shipped else ("int8",)
    report = export_all(qgraph, folder, settings, upsample=settings.upsample, pixels=kinds)
    if not shipped:
        return report
    box, made = pretrained(), Path(folder) / f"student_dynamic_{kinds[0]}.tflite"
    report["box"] = {"file": box.name, "sha256": sha256_file(box), "equal": equal_share(
        TFLiteUpscaler(box, settings.threads), TFLiteUpscaler(made, settings.threads), parity_images())}
    write_json(Path(folder) / "export.json", report)
    return report


def read_back(path: str | Path) -> QuantisedGraph:
    """Graph, weights and grids of an INT8 file as this kit writes it (`depth_to_space` form).

    Weights are multiples of their steps, biases of input step × weight step: what the file computes with.

    Raises:
        UserError: missing or damaged file, or one with other operators (the authors', an NPU form, a float file).
    """
    file = read_graph(path)
    refuse = lambda why: UserError(f"{path} cannot be read back: {why}. Name an INT8 file that `paperlib export` wrote "
                                   "with DEPTH_TO_SPACE, or export from the checkpoint.")
    names = {index: "input" for index in file.inputs}
    nodes, grids = [Node("input", "input")], {"input": _grid(file.tensors[file.inputs[0]])}
    scales: dict[str, Tensor] = {}
    for number, operator in enumerate(file.operators, 1):
        name = f"{operator.name.lower()}.{number}"
        try:
            node, scale = _node(name, operator, file, names)
        except ValueError as error:
            raise refuse(str(error)) from error
        out = file.tensors[operator.outputs[0]]
        if out.type != "int8" or len(out.scales) != 1:
            raise refuse(f"{operator.name} gives {out.type}, not int8")
        nodes.append(node)
        names[operator.outputs[0]], grids[name] = name, _grid(out)
        if scale is not None:
            scales[name] = scale
    if nodes[-1].op != "depth_to_space":
        raise refuse("it does not end with DEPTH_TO_SPACE")
    nodes.append(Node("output", "clamp", (nodes[-1].name,)))
    graph = _in_pixel_shuffle_order(Graph(tuple(nodes)), scales)
    quantiser = "tflite" if any(scale.numel() > 1 for scale in scales.values()) else "paper"
    return QuantisedGraph(graph, {owner: grids[owner] for owner in set(qparam_owners(graph).values())}, scales,
                          quantiser)


def _grid(tensor: FileTensor) -> QParams:
    return QParams(tensor.scales[0], tensor.zero_points[0]) if tensor.scales else QParams(1.0, 0)


def _node(
    name: str, operator: FileOperator, file: FileGraph, names: dict[int, str],
) -> tuple[Node, Tensor | None]:
    """One operator as a node, weights still in the file's order of channels; and its weights' steps.

    Raises:
        ValueError: an operator, or an option of it, that the kit never writes.
    """
    options, tensors = operator.options, [file.tensors[index] for index in operator.inputs]
    sources = tuple(names[index] for index in operator.inputs if index in names)
    if options.get("fusedActivationFunction", 0) not in (0, 1):
        raise ValueError(f"{operator.name} ends with an activation other than ReLU")
    relu = options.get("fusedActivationFunction") == 1
    match operator.name:
        case "CONV_2D" | "DEPTHWISE_CONV_2D":
            plain = {"padding": 0, "strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
            if plain.items() - options.items():
                raise ValueError("a convolution is strided, dilated or not padded to the same size")
            weight, bias, scale = _kernel(*tensors)
            groups = weight.shape[0] if operator.name == "DEPTHWISE_CONV_2D" else 1
            return Node(name, "conv", sources, weight, bias, groups, relu), scale
        case "PRELU":
            slopes = torch.tensor(tensors[1].data.astype(np.float32).ravel())
            scale = torch.tensor(tensors[1].scales, dtype=torch.float32)
            return Node(name, "prelu", sources, slopes * scale), scale
        case "ADD" if len(sources) == 2:
            return Node(name, "add", sources, relu=relu), None
        case "CONCATENATION" if len(set(sources)) == 1 and len(sources) == SCALE**2:
            return Node(name, "repeat", sources[:1]), None
        case "CONCATENATION":
            return Node(name, "concat", sources), None
        case "DEPTH_TO_SPACE" if options["blockSize"] == SCALE:
            return Node(name, "depth_to_space", sources), None
    raise ValueError(f"it has the operator {operator.name}")


def _kernel(source: FileTensor, weight: FileTensor, bias: FileTensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float kernel (O, I/groups, k, k), bias (O,) and weight steps ((1,) or (O,)) of a convolution.

    Raises:
        ValueError: constants that are missing, or no int8 kernel.
    """
    if weight.data is None or bias.data is None or weight.type != "int8" or not source.scales:
        raise ValueError("a convolution has no int8 kernel with an int32 bias")
    scale = torch.tensor(weight.scales, dtype=torch.float32)
    # (O, k, k, I) of CONV_2D, (1, k, k, O) of DEPTHWISE_CONV_2D
    order = (0, 3, 1, 2) if weight.axis == 0 else (3, 0, 1, 2)
    kernel = torch.from_numpy(weight.data.astype(np.float32).transpose(order).copy())
    steps = scale.double() * source.scales[0]
    return (kernel * scale.reshape(-1, 1, 1, 1), (torch.from_numpy(bias.data.astype(np.float64)) * steps).float(),
            scale)


def _in_pixel_shuffle_order(graph: Graph, scales: dict[str, Tensor]) -> Graph:
    """Channels before DEPTH_TO_SPACE from its order (sub-pixel, colour) back to PixelShuffle's; `scales` in place."""
    back = lambda values: values.reshape(SCALE**2, -1, *values.shape[1:]).transpose(0, 1).flatten(0, 1)
    changed = {}
    for name in before_shuffle(graph):
        node = graph[name]
        if node.weight is not None:
            changed[name] = (back(node.weight).contiguous(), back(node.bias))
            if scales[name].numel() > 1:
                scales[name] = back(scales[name])
    return graph.with_weights(changed)
