"""INT8 TFLite files that keep what was learnt (paper section 5).

The published export went through post-training quantisation and threw the learnt ranges away; here they are handed to
the converter (`paperlib.tf_graph`). Fixed and dynamic shape, a float file, and the authors' way as a second row.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from paperlib.environment import quiet_libraries
from paperlib.export.npu import estimate_if_available
from paperlib.export.tf_graph import FloatBuilder, Int8Builder, tensorflow
from paperlib.export.tflite import TFLiteUpscaler, inspect_tflite
from paperlib.files import atomic_path, write_json
from paperlib.quantisation.int8 import QuantisedGraph, dequantised_graph, run_quantised
from paperlib.quantisation.qat import quantised_graph
from paperlib.settings import ExportSettings
from paperlib.student.graph import Graph, image_batch, macs_per_lr_pixel, parameters


def _convert(
    build: Callable[[Any], Any], path: str | Path, height: int | None, width: int | None,
    configure: Callable[[Any], None] | None = None,
) -> Path:
    """Trace `build` for (1, height, width, 3) (None: any size), convert, and write the file atomically."""
    tf = tensorflow()
    module = tf.Module()
    module.build = tf.function(build, autograph=False)
    with quiet_libraries():
        traced = module.build.get_concrete_function(tf.TensorSpec([1, height, width, 3], tf.float32, name="lr"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
    if configure:
        configure(converter)
    with quiet_libraries():
        content = converter.convert()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _int8(converter: Any) -> None:
    tf = tensorflow()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8


def export_tflite(
    qgraph: QuantisedGraph, path: str | Path, height: int | None = None, width: int | None = None,
    upsample: str = "depth_to_space",
) -> Path:
    """Write a full-INT8 file with the graph's own grids; no calibration.

    Args:
        height, width: fixed LR input size; None: dynamic.
        upsample: "depth_to_space", or "rows": the same values by slices and a concatenation that stay on an NPU
            (fixed size only).

    Raises:
        ValueError: `upsample="rows"` with a dynamic size.
        UserError: the file cannot be written.
    """
    if upsample == "rows" and (height is None or width is None):
        raise ValueError("upsample='rows' needs a fixed height and width")
    return _convert(Int8Builder(qgraph, upsample), path, height, width, _int8)


def export_float(graph: Graph, path: str | Path, height: int | None = None, width: int | None = None) -> Path:
    """Write the float32 file of a graph; dynamic size by default."""
    return _convert(FloatBuilder(graph), path, height, width)


def export_ptq(
    graph: Graph, images: Sequence[np.ndarray], path: str | Path, height: int | None = None, width: int | None = None,
) -> Path:
    """Write an INT8 file by TensorFlow's post-training quantisation, as the authors did (second row of the tables).

    Args:
        images: LR photographs, uint8 (h, w, 3), from which the converter takes its ranges; the authors used 32.
    """
    def configure(converter: Any) -> None:
        _int8(converter)
        converter.target_spec.supported_ops = [tensorflow().lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([_sample(image, height, width)] for image in images)

    return _convert(FloatBuilder(graph), path, height, width, configure)


def _sample(image: np.ndarray, height: int | None, width: int | None) -> np.ndarray:
    """One calibration input, float32 (1, h, w, 3); padded by reflection and cropped where the file's size is fixed."""
    if height is not None:
        missing = (max(0, height - image.shape[0]), max(0, width - image.shape[1]))
        image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")[:height, :width]
    return image.astype(np.float32)[None]


def parity(qgraph: QuantisedGraph, model: TFLiteUpscaler, images: Sequence[np.ndarray]) -> dict[str, float]:
    """How far a file's output is from the fake-quant forward, in steps of its output grid.

    Args:
        images: LR images, uint8 (h, w, 3).

    Returns:
        Share of values that are `equal`, `within_1_lsb`, `within_2_lsb`; `max_lsb`; `values`.
    """
    step = qgraph.grid(qgraph.graph.nodes[-1].name).scale
    steps = []
    for image in images:
        expected = run_quantised(qgraph, image_batch(image))[0].permute(1, 2, 0).numpy()
        steps.append(np.abs(model(image) - expected).ravel() / step)
    distance = np.concatenate(steps)
    # a hundredth of a step is float32's rounding of 255, not a difference
    shares = {name: float(np.mean(distance <= limit + 0.01))
              for name, limit in (("equal", 0), ("within_1_lsb", 1), ("within_2_lsb", 2))}
    return shares | {"max_lsb": float(distance.max()), "values": int(distance.size)}


def parity_images(count: int = 2, size: int = 64) -> list[np.ndarray]:
    """Reproducible LR test images, uint8: noise over a ramp, with black and white areas."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        ramp = np.linspace(0, 255, size)[None, :, None] + random.normal(0, 40, (size, size, 3))
        ramp[: size // 4], ramp[-size // 4 :] = 0, 255
        images.append(np.clip(ramp, 0, 255).astype(np.uint8))
    return images


def export_all(
    model: nn.Module | QuantisedGraph, folder: str | Path, settings: ExportSettings,
    images: Sequence[np.ndarray] | None = None, upsample: str = "depth_to_space",
) -> dict[str, Any]:
    """Write the shipped files: dynamic and fixed INT8, the same weights in float, and `export.json` about them.

    Args:
        model: a model from quantisation-aware training, or a quantised graph read from a checkpoint.
        images: LR images (uint8) for the parity check; default: synthetic ones.
        upsample: form of PixelShuffle in the fixed file, see `export_tflite`.

    Returns:
        The content of export.json.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    qgraph = model if isinstance(model, QuantisedGraph) else quantised_graph(model)
    images = list(images) if images is not None else parity_images()
    height, width = settings.height, settings.width
    dynamic = export_tflite(qgraph, folder / "student_dynamic_int8.tflite")
    fixed = export_tflite(qgraph, folder / "student_fixed_int8.tflite", height, width, upsample)
    float_file = export_float(dequantised_graph(qgraph), folder / "student_float.tflite")
    files = {path.name: inspect_tflite(path, height, width) for path in (dynamic, fixed, float_file)}
    report = {
        "quantiser": qgraph.quantiser,
        "parameters": parameters(qgraph.graph), "macs_per_lr_pixel": macs_per_lr_pixel(qgraph.graph),
        "grids": {name: {"scale": grid.scale, "zero_point": grid.zero_point} for name, grid in qgraph.grids.items()},
        "weight_scales": {name: scale.tolist() for name, scale in qgraph.weight_scales.items()},
        "files": files,
        "parity": parity(qgraph, TFLiteUpscaler(dynamic, settings.threads), images),
        "npu": estimate_if_available(fixed)}
    write_json(folder / "export.json", report)
    return report
