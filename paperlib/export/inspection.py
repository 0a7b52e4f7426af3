"""`paperlib inspect`: what a model file is, ours or anybody's (paper section 5; a .tflite file needs no torch)."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paperlib.errors import UserError
from paperlib.export.flatbuffer import FileGraph, file_radius, read_graph
from paperlib.export.tflite import inspect_tflite
from paperlib.files import sha256_file


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
            "radius": file_radius(graph), "operators": inside["counts"], "inputs": inside["inputs"],
            "outputs": inside["outputs"], "float_tensors": len(inside["float_tensors"]),
            "arena_bytes": inside["arena_bytes"], "input_size": inside["input_size"], "notes": notes}


def _parameters(graph: FileGraph) -> int:
    """Weights and biases: constants that are no shapes, axes or limits."""
    biases = {operator.inputs[-1] for operator in graph.operators if len(operator.inputs) > 2 and (
        operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "FULLY_CONNECTED", "TRANSPOSE_CONV"))}
    return sum(tensor.data.size for index, tensor in enumerate(graph.tensors) if tensor.data is not None and (
        index in biases or (tensor.data.size > 1 and tensor.type not in ("int32", "int64", "bool"))))


class _Tensor(BaseModel):
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class _Header(BaseModel):
    """A .safetensors file's header: a tensor under each name, and metadata."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Tensor]
    metadata: dict[str, str] | None = Field(None, alias="__metadata__")

    def tensors(self) -> dict[str, _Tensor]:
        return self.__pydantic_extra__


def _header(path: Path) -> tuple[dict[str, _Tensor], dict[str, Any]]:
    """What a .safetensors file says of itself, read without any library: its tensors, and our metadata (or none).

    Raises:
        UserError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            if length > min(2**27, size - 8):
                raise ValueError("no header")
            header = _Header.model_validate_json(file.read(length))
            for tensor in header.tensors().values():
                first, last = tensor.data_offsets
                if not first <= last <= size - 8 - length or math.prod(tensor.shape) > 8 * (last - first):
                    raise ValueError("sizes that are not the file's")
            about = json.loads((header.metadata or {}).get("paperlib", "{}"))
            if not isinstance(about, dict) or not isinstance(about.get("form", ""), str) or (
                    about and "form" not in about):
                raise ValueError("metadata of another kind")
            return header.tensors(), about
    except (ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is not a readable .safetensors file ({reason}). Name a checkpoint of this "
                        "kit.") from error


def _inspect_safetensors(path: Path) -> dict[str, Any]:
    header, about = _header(path)
    kinds = ", ".join(sorted({tensor.dtype for tensor in header.values()} - {"I32", "I64", "BOOL"}))
    values = sum(math.prod(tensor.shape) for tensor in header.values())
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
