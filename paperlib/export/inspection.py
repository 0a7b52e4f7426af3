"""`paperlib inspect`: what a model file is, ours or anybody's (paper section 5; a .tflite file needs no torch)."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.errors import UserError
from paperlib.export.flatbuffer import FileGraph, FileTensor, file_reach, read_graph
from paperlib.export.tflite import (
    allocate,
    grid_peaks,
    interpreter_module,
    open_interpreter,
)
from paperlib.files import reading, sha256_file


def inspect_tflite(path: str | Path, height: int = 720, width: int = 1280) -> dict[str, Any]:
    """What a .tflite file holds, as `export.json` lists it; nothing is run.

    Args:
        height, width: input size to assume for a file with dynamic shape.

    Returns:
        `operators`: names in the order of execution; `counts`; `tensors`: index, name, type, shape,
        scales, zero points of each tensor; `float_tensors`: names of float tensors (none in a
        full-INT8 file); `bytes`, `sha256`; `inputs`, `outputs`: name, type, shape (-1: open), scale
        and zero point of each; `input_size`; `arena_bytes`: the least memory that holds all feature
        maps alive at one moment, at that size.

    Raises:
        UserError: missing or damaged, without an input, or with operators that the interpreter has not.
    """
    interpreter, graph = open_interpreter(path, xnnpack=False)
    if not graph.inputs:
        raise UserError(f"{path} takes no input. Name a model that does.")
    first = graph.tensors[graph.inputs[0]].shape
    if len(first) == 4 and -1 not in first[1:3]:
        height, width = first[1:3]
    # shapes behind shape arithmetic are known only to the planner
    allocate(interpreter, graph, path, height, width)
    shapes = {index: list(tensor.shape) for index, tensor in enumerate(graph.tensors)}
    shapes |= {int(tensor["index"]): [int(side) for side in tensor["shape"]]
               for tensor in interpreter.get_tensor_details() if tensor["index"] in shapes}
    used = sorted({index for operator in graph.operators
                   for index in (*operator.inputs, *operator.outputs) if index >= 0})
    names = [operator.name for operator in graph.operators]
    ends = {end: [_port(graph.tensors[index]) for index in getattr(graph, end)] for end in ("inputs", "outputs")}
    size = shapes[graph.inputs[0]]
    return {
        "file": Path(path).name, "bytes": Path(path).stat().st_size, "sha256": sha256_file(path),
        "interpreter": interpreter_module()[1], "input_size": size[1:3] if len(first) == 4 else size,
        "dynamic": any(-1 in port["shape"] for port in ends["inputs"]), **ends,
        "operators": names, "counts": dict(Counter(names)),
        "tensors": [_describe(index, graph.tensors[index], shapes[index]) for index in used],
        "float_tensors": [graph.tensors[index].name for index in used
                          if graph.tensors[index].type.startswith("float")],
        "arena_bytes": _arena(graph, shapes)}


def _port(tensor: FileTensor) -> dict[str, Any]:
    """An input or output as a caller needs it: value = scale·(number − zero point)."""
    grid = bool(tensor.scales) and "int" in tensor.type
    return {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape),
            "scale": tensor.scales[0] if grid else None, "zero_point": tensor.zero_points[0] if grid else None}


def _describe(index: int, tensor: FileTensor, shape: list[int]) -> dict[str, Any]:
    return {"index": index, "name": tensor.name, "type": tensor.type, "shape": shape,
            "scales": list(tensor.scales), "zero_points": sorted(set(tensor.zero_points)), "axis": tensor.axis}


def _arena(graph: FileGraph, shapes: Mapping[int, Sequence[int]]) -> int:
    """Largest sum of the sizes of feature maps alive during one operator; constants are none."""
    size = {index: math.prod(shape) * graph.tensors[index].itemsize for index, shape in shapes.items()}
    written = {index: step for step, operator in enumerate(graph.operators) for index in operator.outputs}
    written |= dict.fromkeys(graph.inputs, 0)
    last = dict(written)
    for step, operator in enumerate(graph.operators):
        last |= {index: step for index in operator.inputs if index in written}
    last |= dict.fromkeys(graph.outputs, len(graph.operators) - 1)
    return max(sum(size[index] for index, first in written.items() if first <= step <= last[index])
               for step in range(len(graph.operators)))


def multiply_adds(graph: FileGraph, shapes: Mapping[int, Sequence[int]]) -> int:
    """Multiply–accumulates of one inference: convolutions, fully connected layers and matrix products.

    Args:
        shapes: of every tensor by its index, sizes known (a dynamic file's depend on its input).
    """
    total = 0
    for operator in graph.operators:
        out = int(np.prod(shapes[operator.outputs[0]])) if operator.outputs else 0
        match operator.name:
            case "CONV_2D" | "CONV_3D":
                weight = shapes[operator.inputs[1]]
                total += out * int(np.prod(weight)) // (weight[0] if operator.name == "CONV_2D" else weight[-1])
            case "DEPTHWISE_CONV_2D":
                total += out * int(np.prod(shapes[operator.inputs[1]][1:3]))
            case "TRANSPOSE_CONV":  # inputs: output shape, weights (O, k, k, I), map
                weight = shapes[operator.inputs[1]]
                total += int(np.prod(shapes[operator.inputs[2]])) * int(np.prod(weight[:3]))
            case "FULLY_CONNECTED":
                total += out * shapes[operator.inputs[1]][-1]
            case "BATCH_MATMUL":
                left = shapes[operator.inputs[0]]
                total += out * left[-2 if operator.options.get("adjX") else -1]
    return total


def precision(graph: FileGraph) -> str:
    """What kind of arithmetic a file holds, from the types of its maps and of its constants."""
    used = {index for operator in graph.operators for index in (*operator.inputs, *operator.outputs) if index >= 0}
    tensors = [graph.tensors[index] for index in sorted(used)]
    maps = {tensor.type for tensor in tensors if tensor.data is None} - {"int32", "int64", "bool"}
    weights = [tensor for tensor in tensors if tensor.data is not None and tensor.data.ndim > 1]
    stored = {tensor.type for tensor in weights}
    if maps and maps <= {"int8", "uint8", "int16"}:
        per = sorted({len(tensor.scales) > 1 for tensor in weights if tensor.type in ("int8", "uint8")})
        kind = "INT16 maps, INT8 weights" if "int16" in maps else "full INT8"
        return ", ".join([kind, *(f"weights per {'channel' if many else 'tensor'}" for many in per)])
    if maps == {"float32"}:
        if stored & {"int8", "uint8"}:
            return "float32 maps, INT8 weights (dynamic range)"
        return "float32 maps, float16 weights" if "float16" in stored else "float32"
    return f"mixed: maps {', '.join(sorted(maps)) or 'none'}; weights {', '.join(sorted(stored)) or 'none'}"


def inspect_model(path: str | Path, height: int = 720, width: int = 1280) -> dict[str, Any]:
    """Describe a model file: any .tflite, a .safetensors checkpoint of this kit, or one of the authors' .pt.

    Args:
        height, width: input size to assume where the file leaves it open.

    Returns:
        `file`, `bytes`, `sha256`, `kind`, `precision`, `parameters`, `macs_per_lr_pixel`, `radius` (input pixels; None:
        unbounded or unknown), `operators` (counts); a .tflite's `inputs` and `outputs`; `notes`.

    Raises:
        UserError: missing or damaged file, or another format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no file at {path}. Name a .tflite, .safetensors or .pt file.")
    about = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".safetensors":
        return about | _inspect_safetensors(path)
    if path.suffix == ".pt":
        return about | _inspect_published(path)
    if path.suffix != ".tflite":
        raise UserError(f"{path} is no model file that paperlib knows. Name a .tflite, .safetensors or .pt file.")
    return about | _inspect_file(path, height, width)


def _inspect_file(path: Path, height: int, width: int) -> dict[str, Any]:
    graph, inside = read_graph(path), inspect_tflite(path, height, width)
    macs = multiply_adds(graph, {tensor["index"]: tensor["shape"] for tensor in inside["tensors"]})
    notes = [f"{graph.subgraphs} subgraphs; only the first is described"] if graph.subgraphs > 1 else []
    image = len(inside["inputs"][0]["shape"]) == 4
    return {"kind": "TFLite model", "precision": precision(graph), "parameters": _parameters(graph),
            "macs_per_lr_pixel": round(macs / int(np.prod(inside["input_size"]))) if image else None, "macs": macs,
            "radius": file_reach(graph)[0], "operators": inside["counts"], "inputs": inside["inputs"],
            "outputs": inside["outputs"], "float_tensors": len(inside["float_tensors"]),
            "arena_bytes": inside["arena_bytes"], "input_size": inside["input_size"], "notes": notes}


def _parameters(graph: FileGraph) -> int:
    """Weights and biases: constants that are no shapes, axes or limits."""
    biases = {operator.inputs[-1] for operator in graph.operators if len(operator.inputs) > 2 and (
        operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "FULLY_CONNECTED", "TRANSPOSE_CONV"))}
    return sum(tensor.data.size for index, tensor in enumerate(graph.tensors) if tensor.data is not None and (
        index in biases or (tensor.data.size > 1 and tensor.type not in ("int32", "int64", "bool"))))


def _header(path: Path) -> tuple[dict[str, tuple[str, int]], dict[str, Any]]:
    """A .safetensors file's tensors (type, number of values) and our metadata, if any, without torch or its library."""
    with reading(path, "a .safetensors file"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not length <= path.stat().st_size - 8:
            raise ValueError("no header")
        header = json.loads(file.read(length))
        about = json.loads((header.pop("__metadata__", None) or {}).get("paperlib", "{}"))
        about |= {"form": str(about["form"])} if about else {}
        found = {name: (tensor["dtype"], math.prod(tensor["shape"])) for name, tensor in header.items()}
        for name, (_, values) in found.items():
            first, end = header[name]["data_offsets"]
            if not values <= end - first <= path.stat().st_size:  # a value takes a byte at least
                raise ValueError(f"{name} has {values:,} values in {end - first} bytes")
        return found, about


def _inspect_safetensors(path: Path) -> dict[str, Any]:
    header, about = _header(path)
    kinds = ", ".join(sorted({kind for kind, _ in header.values()} - {"I32", "I64", "BOOL"}))
    values = sum(count for _, count in header.values())
    found = {"kind": f"checkpoint, form {about['form']}" if about else "tensors, not written by paperlib",
             "precision": f"{kinds}, fake-quantised ({about['quantiser']})" if about.get("quantiser") else kinds,
             "parameters": values,
             "checkpoint": {key: about[key] for key in about if key not in ("grids", "nodes")},
             "notes": []}
    if not about:
        return found
    if find_spec("torch") is None:
        return found | {"notes": ["parameters are all stored values; the deployed network's MACs and reach need torch: "
                                  "install the kit"]}
    from paperlib.quantisation.qat import read_quantised
    from paperlib.student.models import deployment_graph, fuse_model, load_model

    graph = read_quantised(path).graph if about["form"] == "qat" else (
        deployment_graph(fuse_model(load_model(path))))
    return found | _of_graph(graph) | {"notes": [f"{values} stored values; the network is described as deployed"]}


def _inspect_published(path: Path) -> dict[str, Any]:
    from paperlib.quantisation.qat import read_quantised
    from paperlib.student.models import deployment_graph, read_published

    try:
        graph, kind = deployment_graph(read_published(path)), "the authors' deploy checkpoint"
        arithmetic = "float32"
    except UserError:
        qgraph = read_quantised(path)
        graph, kind = qgraph.graph, "the authors' quantised checkpoint"
        arithmetic = f"fake-quantised ({qgraph.quantiser})"
    return {"kind": kind, "precision": arithmetic, **_of_graph(graph), "notes": []}


def _of_graph(graph: Any) -> dict[str, Any]:
    """The same lines for a deployment graph."""
    from paperlib.student.graph import macs_per_lr_pixel, parameters, receptive_radius

    return {"parameters": parameters(graph), "macs_per_lr_pixel": macs_per_lr_pixel(graph),
            "radius": receptive_radius(graph), "operators": dict(Counter(node.op for node in graph.nodes[1:]))}


def _range(scale: float | None) -> str:
    if scale is None:
        return "in 0..255 or 0..1, which `evaluate` and `upscale` try"
    try:
        return f"in 0..{grid_peaks('', (scale, scale))[0]:.0f}"
    except UserError:
        return "in neither 0..255 nor 0..1"


def describe(about: dict[str, Any]) -> str:
    """`inspect_model`'s answer as lines to read."""
    lines = {"file": f"{about['file']}, {about['bytes'] / 1e3:.1f} kB, {about['kind']}", "sha256": about["sha256"],
             "precision": about["precision"]}
    if "float_tensors" in about:
        lines["float tensors"] = str(about["float_tensors"])
    for end in ("inputs", "outputs"):
        for port in about.get(end, []):
            sides = " × ".join("any" if side < 0 else str(side) for side in port["shape"])
            grid = "" if port["scale"] is None else f", value = {port['scale']:.9g} · (q − {port['zero_point']})"
            if len(port["shape"]) == 4 and port["shape"][3] == 3:
                grid += f", pictures {_range(port['scale'])}"
            lines[f"{end[:-1]} {port['name']}"] = f"{port['type']} ({sides}){grid}"
    if "operators" in about:
        lines["operators"] = ", ".join(f"{count} × {name}" for name, count in about["operators"].items())
    lines["parameters"] = f"{about['parameters']:,}"
    if about.get("macs_per_lr_pixel") is not None:
        lines["MACs per LR pixel"] = f"{about['macs_per_lr_pixel']:,}"
    elif "macs" in about:
        lines["MACs per inference"] = f"{about['macs']:,}"
    if "radius" in about:
        lines["reach"] = "the whole input, or unknown" if about["radius"] is None else f"{about['radius']} LR pixels"
    if "arena_bytes" in about:
        lines["memory of its maps"] = (f"{about['arena_bytes'] / 2**20:.1f} MiB at an input of "
                                       f"{' × '.join(map(str, about['input_size']))}")
    for key, value in (about.get("checkpoint") or {}).items():
        lines[f"checkpoint {key}"] = json.dumps(value)
    width = max(map(len, lines))
    return "\n".join([*(f"{name:{width}}  {value}" for name, value in lines.items()), *about["notes"]])
