"""INT8 TFLite files that keep what was learned (paper section 5).

The published export, post-training quantisation, threw the learned ranges away; here they are
handed to the converter (`paperlib.export.tf_graph`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.environment import silence_native_stderr
from paperlib.export.inspection import inspect_tflite
from paperlib.export.npu import estimate_npu
from paperlib.export.tf_graph import Builder, tensorflow
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import atomic_path, write_json
from paperlib.quantisation.int8 import QuantisedGraph, dequantised_graph, run_quantised
from paperlib.quantisation.qat import read_quantised
from paperlib.settings import ExportSettings
from paperlib.student.graph import Graph, image_batch, macs_per_lr_pixel, parameters
from paperlib.weights import pretrained


def export_tflite(graph: Graph | QuantisedGraph, path: str | Path, height: int | None = None,
                  width: int | None = None, upsample: str = "depth_to_space",
                  pixels: str = "int8", images: Sequence[np.ndarray] | None = None) -> Path:
    """Write a full-INT8 file with a quantised graph's own grids, or a graph's float32 file.

    Args:
        height, width: fixed LR input size; None: dynamic.
        upsample: "depth_to_space", or "rows": the same values by slices and a concatenation that
            stay on an NPU (fixed size only).
        pixels: type of an INT8 file's input and output: "int8", or "uint8", the same network
            between two QUANTIZE operators that shift by 128.
        images: LR photographs, uint8 (h, w, 3), by which TensorFlow itself quantises a float graph
            (the authors used 32); padded by reflection and cropped to a fixed size.
    """
    def samples() -> Iterator[list[np.ndarray]]:
        for image in images:
            if height is not None:
                below, beside = max(0, height - image.shape[0]), max(0, width - image.shape[1])
                image = np.pad(image, ((0, below), (0, beside), (0, 0)), mode="reflect")
            yield [image[:height, :width].astype(np.float32)[None]]

    tf = tensorflow()
    module = tf.Module()
    module.build = tf.function(Builder(graph, upsample), autograph=False)
    with silence_native_stderr():
        size = tf.TensorSpec([1, height, width, 3], tf.float32, name="lr")
        traced = module.build.get_concrete_function(size)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
    if images is not None or isinstance(graph, QuantisedGraph):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.dtypes.as_dtype(pixels)
        converter.inference_output_type = tf.dtypes.as_dtype(pixels)
    if images is not None:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = samples
    with silence_native_stderr():
        content = converter.convert()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def parity(qgraph: QuantisedGraph, model: TFLiteUpscaler,
           images: Sequence[np.ndarray]) -> dict[str, float]:
    """How far a file's output is from the fake-quant forward on LR images, uint8 (h, w, 3), in
    steps of its grid: shares `equal`, `within_1_lsb`, `within_2_lsb`; `max_lsb`; `values`."""
    step = qgraph.grid(qgraph.graph.nodes[-1].name).scale
    steps = []
    for image in images:
        expected = run_quantised(qgraph, image_batch(image))[0].permute(1, 2, 0).numpy()
        steps.append(np.abs(model(image) - expected).ravel() / step)
    distance = np.concatenate(steps)
    # a hundredth of a step is float32's rounding of 255, not a difference
    shares = {name: float(np.mean(distance <= limit + 0.01))
              for limit, name in enumerate(("equal", "within_1_lsb", "within_2_lsb"))}
    return shares | {"max_lsb": float(distance.max()), "values": int(distance.size)}


def parity_images(count: int = 2, size: int = 64) -> list[np.ndarray]:
    """Reproducible LR test images, uint8: noise over a ramp, with black and white areas."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        noise = random.normal(0, 40, (size, size, 3))
        ramp = np.linspace(0, 255, size)[None, :, None] + noise
        ramp[: size // 4], ramp[-size // 4 :] = 0, 255
        images.append(np.clip(ramp, 0, 255).astype(np.uint8))
    return images


def export_all(qgraph: QuantisedGraph, folder: str | Path, settings: ExportSettings,
               images: Sequence[np.ndarray] | None = None,
               pixels: Sequence[str] = ("int8",)) -> dict[str, Any]:
    """Write `student_{dynamic,fixed}_int8.tflite`, their twins `…_uint8.tflite` where asked for,
    the same weights as `student_float.tflite`, and `export.json` about them, which is returned.

    Args:
        images: LR images (uint8) for the parity check; default: synthetic ones.
        pixels: types of input and output, "int8", "uint8" or both.
    """
    folder, images = Path(folder), parity_images() if images is None else images
    height, width = settings.height, settings.width
    sizes = {"dynamic": (), "fixed": (height, width, settings.upsample)}
    made = {form: [export_tflite(qgraph, folder / f"student_{form}_{kind}.tflite", *size,
                                 pixels=kind) for kind in pixels] for form, size in sizes.items()}
    float_file = export_tflite(dequantised_graph(qgraph), folder / "student_float.tflite")
    report = {
        "quantiser": qgraph.quantiser, "parameters": parameters(qgraph.graph),
        "macs_per_lr_pixel": macs_per_lr_pixel(qgraph.graph),
        "grids": {name: {"scale": grid.scale, "zero_point": grid.zero_point}
                  for name, grid in qgraph.grids.items()},
        "weight_scales": {name: scale.tolist() for name, scale in qgraph.weight_scales.items()},
        "files": {path.name: inspect_tflite(path, height, width)
                  for path in (*made["dynamic"], *made["fixed"], float_file)},
        "parity": parity(qgraph, TFLiteUpscaler(made["dynamic"][0]), images),
        "npu": estimate_npu(made["fixed"][0])}
    write_json(folder / "export.json", report)
    return report


def shipped_graph() -> QuantisedGraph:
    """Graph and grids of the bundled student."""
    return read_quantised(pretrained("pretrained-qat"))


def export_named(name: str | Path, folder: Path, settings: ExportSettings,
                 pixels: str | None = None) -> dict[str, Any]:
    """`export_all` for a quantised checkpoint, or for "pretrained": the bundled student.

    `pixels` is "int8" or "uint8"; None: both for the bundled student, int8 for a checkpoint.
    """
    bundled = str(name) == "pretrained"
    kinds = (pixels,) if pixels else ("int8", "uint8") if bundled else ("int8",)
    qgraph = shipped_graph() if bundled else read_quantised(name)
    return export_all(qgraph, folder, settings, pixels=kinds)


def export_lines(report: dict[str, Any], folder: Path) -> str:
    """What `export_all` wrote, in lines to read."""
    lines = [f"{folder / name}: {file['bytes'] / 1e3:.0f} kB, {len(file['float_tensors'])} float "
             "tensors" for name, file in report["files"].items()]
    near, most = report["parity"]["within_1_lsb"], report["parity"]["max_lsb"]
    lines.append(f"against fake-quant: {near:.4%} of values within 1 step, at most {most:.0f}")
    return "\n".join(lines)
