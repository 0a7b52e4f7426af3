"""`paperlib inspect`: what a model file is (paper section 5); a .tflite file needs no torch."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paperlib.errors import UserError
from paperlib.export.flatbuffer import FileGraph, FileTensor, file_reach, read_graph
from paperlib.export.tflite import allocate, grid_peaks, open_interpreter
from paperlib.files import reading, sha256_file

Shapes = Mapping[int, Sequence[int]]  # of every tensor by its index, no side open


def inspect_tflite(path: str | Path, height: int = 720, width: int = 1280) -> dict[str, Any]:
    """What a .tflite file holds, as `export.json` lists it; nothing is run. Of one that the
    interpreter cannot take, as with operators of an accelerator, what it states.

    Args:
        height, width: input size to assume for a file with dynamic shape.

    Returns:
        What `inspect_model` says of it, but `operators` by name in the order of execution (their
        `counts` beside), and the names of `float_tensors`.
    """
    graph, notes = read_graph(path, check=False), []
    if not graph.inputs or not graph.operators:
        raise UserError(f"{path} has no input or no operators. Name a model that has.")
    first = graph.tensors[graph.inputs[0]].shape
    if len(first) == 4 and -1 not in first[1:3]:
        height, width = first[1:3]
    if graph.subgraphs > 1:
        notes.append(f"{graph.subgraphs} subgraphs; only the first is described")
    shapes = {index: list(tensor.shape) for index, tensor in enumerate(graph.tensors)}
    try:
        interpreter, _ = open_interpreter(path, xnnpack=False)
        allocate(interpreter, graph, path, height, width)
        # shapes behind shape arithmetic are known only to the planner
        shapes |= {int(tensor["index"]): [int(side) for side in tensor["shape"]]
                   for tensor in interpreter.get_tensor_details() if tensor["index"] in shapes}
    except UserError as error:
        notes.append(f"cannot be run here: {error}".removesuffix(" Name another file."))
    with reading(path, "a TFLite file"):
        return _described(Path(path), graph, shapes) | {"notes": notes}


def _described(path: Path, graph: FileGraph, shapes: Shapes) -> dict[str, Any]:
    """`inspect_tflite`'s answer but for the notes, from the shapes of all tensors."""
    names = [operator.name for operator in graph.operators]
    used = sorted({index for operator in graph.operators
                   for index in (*operator.inputs, *operator.outputs)} - {-1})
    tensors = [graph.tensors[index] for index in used]
    size, known = shapes[graph.inputs[0]], all(-1 not in shapes[index] for index in used)
    macs = multiply_adds(graph, shapes) if known else None
    image = len(size) == 4 and known and math.prod(size) > 0
    return {
        **_file(path), "kind": "TFLite model", "precision": precision(tensors),
        "interpreter": "ai_edge_litert", "parameters": _parameters(graph), "macs": macs,
        "macs_per_lr_pixel": round(macs / math.prod(size[1:3])) if image else None,
        "radius": file_reach(graph)[0],
        "input_size": (size[1:3] if image else size) if known else [],
        "dynamic": any(-1 in graph.tensors[index].shape for index in graph.inputs),
        "inputs": [_port(graph.tensors[index]) for index in graph.inputs],
        "outputs": [_port(graph.tensors[index]) for index in graph.outputs],
        "operators": names, "counts": dict(Counter(names)),
        "float_tensors": [tensor.name for tensor in tensors if tensor.type.startswith("float")]}


def _file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _port(tensor: FileTensor) -> dict[str, Any]:
    """An input or output as a caller needs it: value = scale·(number − zero point)."""
    grid = bool(tensor.scales) and "int" in tensor.type
    return {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape),
            "scale": tensor.scales[0] if grid else None,
            "zero_point": tensor.zero_points[0] if grid else None}


def multiply_adds(graph: FileGraph, shapes: Shapes) -> int:
    """Multiply–accumulates of one inference: convolutions and matrix products."""
    total = 0
    for operator in graph.operators:
        out = math.prod(shapes[operator.outputs[0]])
        weight = shapes.get(operator.inputs[1], ()) if len(operator.inputs) > 1 else ()
        match operator.name:
            case "CONV_2D" | "FULLY_CONNECTED":
                total += out * math.prod(weight[1:])
            case "CONV_3D":
                total += out * math.prod(weight[:-1])
            case "DEPTHWISE_CONV_2D":
                total += out * math.prod(weight[1:3])
            case "TRANSPOSE_CONV":  # inputs: output shape, weights (O, k, k, I), map
                total += math.prod(shapes[operator.inputs[2]]) * math.prod(weight[:3])
            case "BATCH_MATMUL":
                left = shapes[operator.inputs[0]]
                total += out * left[-2 if operator.options.get("adjX") else -1]
    return total


def precision(tensors: Iterable[FileTensor]) -> str:
    """What kind of arithmetic a file holds, from the types of its maps and of its constants."""
    maps = {tensor.type for tensor in tensors if tensor.data is None} - {"int32", "int64", "bool"}
    weights = [tensor for tensor in tensors if tensor.data is not None and tensor.data.ndim > 1]
    stored = {tensor.type for tensor in weights}
    if maps and maps <= {"int8", "uint8", "int16"}:
        kind = "INT16 maps, INT8 weights" if "int16" in maps else "full INT8"
        per = {"weights per " + ("channel" if len(tensor.scales) > 1 else "tensor")
               for tensor in weights if tensor.type in ("int8", "uint8")}
        return ", ".join([kind, *sorted(per, reverse=True)])
    if maps == {"float32"}:
        if stored & {"int8", "uint8"}:
            return "float32 maps, INT8 weights (dynamic range)"
        return "float32 maps, float16 weights" if "float16" in stored else "float32"
    kinds = [", ".join(sorted(types)) or "none" for types in (maps, stored)]
    return f"mixed: maps {kinds[0]}; weights {kinds[1]}"


def _parameters(graph: FileGraph) -> int:
    """Weights and biases: constants that are no shapes, axes or limits."""
    biases = {operator.inputs[-1] for operator in graph.operators if len(operator.inputs) > 2
              and ("CONV" in operator.name or operator.name == "FULLY_CONNECTED")}
    return sum(tensor.data.size for index, tensor in enumerate(graph.tensors)
               if tensor.data is not None and (index in biases or (
                   tensor.data.size > 1 and tensor.type not in ("int32", "int64", "bool"))))


def inspect_model(path: str | Path) -> dict[str, Any]:
    """Describe a model file: any .tflite, a .safetensors checkpoint of this kit, or one of the
    authors' .pt.

    Returns:
        `file`, `bytes`, `sha256`, `kind`, `precision`, `parameters`, `macs_per_lr_pixel`, `radius`
        (input pixels; None: unbounded or unknown), `operators` (counts); a .tflite's `inputs` and
        `outputs`; `notes`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no file at {path}. Name a .tflite, .safetensors or .pt file.")
    match path.suffix:
        case ".safetensors":
            return _file(path) | _inspect_safetensors(path)
        case ".pt":
            return _file(path) | _inspect_deployed(path)
        case ".tflite":
            about = inspect_tflite(path)
            return about | {"operators": about.pop("counts"),
                            "float_tensors": len(about["float_tensors"])}
    raise UserError(f"{path} is no model file that paperlib knows. Name a .tflite, .safetensors or "
                    ".pt file.")


def _inspect_safetensors(path: Path) -> dict[str, Any]:
    """The header is read as it stands: neither torch nor the format's library is needed."""
    with reading(path, "a .safetensors file"), path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        header = json.loads(file.read(min(length, size)))
        about = json.loads((header.pop("__metadata__", None) or {}).get("paperlib", "{}"))
        kinds = {tensor["dtype"] for tensor in header.values()} - {"I32", "I64", "BOOL"}
        values = sum(math.prod(tensor["shape"]) for tensor in header.values())
        if values > size:  # each takes a byte at least
            raise ValueError(f"{values:,} values in {size:,} bytes")
        stored = ", ".join(sorted(kinds))
        found = {"kind": "tensors, not written by paperlib", "precision": stored,
                 "parameters": values, "checkpoint": {}, "notes": []}
        if not about:
            return found
        found |= {"kind": f"checkpoint, form {about['form']}", "checkpoint": {
            key: value for key, value in about.items() if key not in ("grids", "nodes")}}
    if about.get("quantiser"):
        found["precision"] = f"{stored}, fake-quantised ({about['quantiser']})"
    if find_spec("torch") is None:
        return found | {"notes": ["parameters are all stored values; the deployed network's MACs "
                                  "and reach need torch: install the kit"]}
    found["notes"] = [f"{values} stored values; the network is described as deployed"]
    return _inspect_deployed(path) | {
        name: found[name] for name in ("kind", "precision", "checkpoint", "notes")}


def _inspect_deployed(path: Path) -> dict[str, Any]:
    """A checkpoint's deployed network, the checkpoint called the authors'."""
    from paperlib.quantisation.int8 import QuantisedGraph
    from paperlib.quantisation.qat import read_network
    from paperlib.student.graph import macs_per_lr_pixel, parameters, receptive_radius
    from paperlib.student.models import deployment_graph

    network = read_network(path)
    if isinstance(network, QuantisedGraph):
        graph, form, precision = network.graph, "quantised", f"fake-quantised ({network.quantiser})"
    else:
        graph, form, precision = deployment_graph(network), "deploy", "float32"
    return {"kind": f"the authors' {form} checkpoint", "precision": precision,
            "parameters": parameters(graph), "macs_per_lr_pixel": macs_per_lr_pixel(graph),
            "radius": receptive_radius(graph),
            "operators": dict(Counter(node.op for node in graph.nodes[1:])), "notes": []}


def _range(scale: float | None) -> str:
    if scale is None:
        return "in 0..255 or 0..1, which `evaluate` and `upscale` try"
    try:
        return f"in 0..{grid_peaks('', (scale, scale))[0]:.0f}"
    except UserError:
        return "in neither 0..255 nor 0..1"


def describe(about: dict[str, Any]) -> str:
    """`inspect_model`'s answer as lines to read."""
    lines = {"file": f"{about['file']}, {about['bytes'] / 1e3:.1f} kB, {about['kind']}",
             "sha256": about["sha256"], "precision": about["precision"]}
    if "float_tensors" in about:
        lines["float tensors"] = str(about["float_tensors"])
    for end in ("inputs", "outputs"):
        for port in about.get(end, []):
            sides = " × ".join("any" if side < 0 else str(side) for side in port["shape"])
            line = f"{port['type']} ({sides})"
            if port["scale"] is not None:
                line += f", value = {port['scale']:.9g} · (q − {port['zero_point']})"
            if len(port["shape"]) == 4 and port["shape"][3] == 3:
                line += f", pictures {_range(port['scale'])}"
            lines[f"{end[:-1]} {port['name']}"] = line
    radius, macs = about.get("radius"), about.get("macs_per_lr_pixel")
    lines |= {
        "operators": ", ".join(f"{count} × {name}"
                               for name, count in about.get("operators", {}).items()),
        "parameters": f"{about['parameters']:,}",
        "MACs per LR pixel": "" if macs is None else f"{macs:,}",
        "MACs per inference": f"{about['macs']:,}" if macs is None and about.get("macs") else "",
        "reach": f"{radius} LR pixels" if radius is not None else (
            "the whole input, or unknown" if "radius" in about else "")}
    lines |= {f"checkpoint {key}": json.dumps(value)
              for key, value in about.get("checkpoint", {}).items()}
    lines = {name: value for name, value in lines.items() if value}
    width = max(map(len, lines))
    return "\n".join([*(f"{name:{width}}  {value}" for name, value in lines.items()),
                      *about["notes"]])
