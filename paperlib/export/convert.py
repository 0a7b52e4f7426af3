"""INT8 TFLite files that keep what was learnt (paper section 5).

The published export went through post-training quantisation and threw the learnt ranges away; here they are handed to
the converter (`paperlib.export.tf_graph`). Fixed and dynamic shape, a float file, and the authors' way as a second row.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from paperlib.environment import silence_native_stderr
from paperlib.export.inspection import inspect_tflite
from paperlib.export.npu import estimate_if_available
from paperlib.export.tf_graph import FloatBuilder, Int8Builder, tensorflow
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import atomic_path, sha256_file, write_json
from paperlib.quantisation.int8 import QuantisedGraph, dequantised_graph, run_quantised
from paperlib.quantisation.qat import quantised_graph, read_quantised
from paperlib.settings import ExportSettings
from paperlib.student.graph import Graph, image_batch, macs_per_lr_pixel, parameters
from paperlib.weights import pretrained


def _convert(
    build: Callable[[Any], Any], path: str | Path, height: int | None, width: int | None,
    configure: Callable[[Any], None] | None = None,
) -> Path:
    """Trace `build` for (1, height, width, 3) (None: any size), convert, and write the file atomically."""
    tf = tensorflow()
    module = tf.Module()
    module.build = tf.function(build, autograph=False)
    with silence_native_stderr():
        traced = module.build.get_concrete_function(tf.TensorSpec([1, height, width, 3], tf.float32, name="lr"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
    if configure:
        configure(converter)
    with silence_native_stderr():
        content = converter.convert()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _int8(converter: Any, pixels: str = "int8") -> None:
    tf = tensorflow()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(pixels)


def export_tflite(
    qgraph: QuantisedGraph, path: str | Path, height: int | None = None, width: int | None = None,
    upsample: str = "depth_to_space", pixels: str = "int8",
) -> Path:
    """Write a full-INT8 file with the graph's own grids; no calibration.

    Args:
        height, width: fixed LR input size; None: dynamic.
        upsample: "depth_to_space", or "rows": the same values by slices and a concatenation that stay on an NPU
            (fixed size only).
        pixels: type of input and output: "int8", or "uint8", the same network between two QUANTIZE operators that
            shift by 128 (what cameras, browsers and most programs have).

    Raises:
        ValueError: `upsample="rows"` with a dynamic size.
        UserError: the file cannot be written.
    """
    if upsample == "rows" and (height is None or width is None):
        raise ValueError("upsample='rows' needs a fixed height and width")
    return _convert(Int8Builder(qgraph, upsample), path, height, width, lambda converter: _int8(converter, pixels))


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


def export_lines(report: dict[str, Any], folder: Path) -> str:
    """What `export_all` wrote, in lines to read."""
    lines = [f"{folder / name}: {file['bytes'] / 1e3:.0f} kB, {len(file['float_tensors'])} float tensors"
             for name, file in report["files"].items()]
    parity = report["parity"]
    lines.append(f"against fake-quant: {parity['within_1_lsb']:.4%} of values within 1 step, at most "
                 f"{parity['max_lsb']:.0f}")
    lines += [f"{form} uint8 against int8: {share:.4%} of values equal" for form, share in
              report.get("twins", {}).items()]
    if "box" in report:
        lines.append(f"against the bundled {report['box']['file']}: {report['box']['equal']:.4%} of values equal")
    return "\n".join(lines)


def equal_share(one: TFLiteUpscaler, other: TFLiteUpscaler, images: Sequence[np.ndarray]) -> float:
    """Share of values that two files give equal, as pixels: int8 and uint8 differ by 128, which their grids say."""
    return float(np.mean(np.concatenate([(one(image) == other(image)).ravel() for image in images])))


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
    images: Sequence[np.ndarray] | None = None, upsample: str = "depth_to_space", pixels: Sequence[str] = ("int8",),
) -> dict[str, Any]:
    """Write the shipped files: dynamic and fixed INT8, the same weights in float, and `export.json` about them.

    `student_{dynamic,fixed}_int8.tflite`, their twins `…_uint8.tflite` where asked for, `student_float.tflite`.

    Args:
        model: a model from quantisation-aware training, or a quantised graph read from a checkpoint.
        images: LR images (uint8) for the parity check; default: synthetic ones.
        upsample: form of PixelShuffle in the fixed files, see `export_tflite`.
        pixels: types of input and output, "int8", "uint8" or both.

    Returns:
        The content of export.json: `files` (inputs, outputs, operators, hashes of each), `grids`, `weight_scales`,
        `parity` with fake-quant, `twins` (share of values in which int8 and uint8 files agree), `npu`.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    qgraph = model if isinstance(model, QuantisedGraph) else quantised_graph(model)
    images = list(images) if images is not None else parity_images()
    height, width = settings.height, settings.width
    dynamic, fixed = ({kind: export_tflite(qgraph, folder / f"student_{form}_{kind}.tflite", *size, pixels=kind)
                       for kind in pixels} for form, size in (("dynamic", ()), ("fixed", (height, width, upsample))))
    float_file = export_float(dequantised_graph(qgraph), folder / "student_float.tflite")
    files = {path.name: inspect_tflite(path, height, width)
             for path in (*dynamic.values(), *fixed.values(), float_file)}
    report = {
        "quantiser": qgraph.quantiser,
        "parameters": parameters(qgraph.graph), "macs_per_lr_pixel": macs_per_lr_pixel(qgraph.graph),
        "grids": {name: {"scale": grid.scale, "zero_point": grid.zero_point} for name, grid in qgraph.grids.items()},
        "weight_scales": {name: scale.tolist() for name, scale in qgraph.weight_scales.items()},
        "files": files,
        "parity": parity(qgraph, TFLiteUpscaler(dynamic[pixels[0]]), images),
        "npu": estimate_if_available(fixed[pixels[0]])}
    if len(pixels) > 1:
        report["twins"] = {
            form: equal_share(*(TFLiteUpscaler(twins[kind]) for kind in pixels), images)
            for form, twins in (("dynamic", dynamic), ("fixed", fixed))}
    write_json(folder / "export.json", report)
    return report


def shipped_graph() -> QuantisedGraph:
    """Graph and grids of the bundled student."""
    return read_quantised(pretrained("pretrained-qat"))


def export_named(
    name: str | Path, folder: str | Path, settings: ExportSettings, pixels: str | None = None,
) -> dict[str, Any]:
    """`export_all` for a quantised checkpoint, or for "pretrained": the bundled student.

    For the latter `export.json` also says, under `box`, in what share of values the bundled file agrees.

    Args:
        pixels: "int8" or "uint8"; None: both for the bundled student, int8 for a checkpoint.
    """
    bundled = str(name) == "pretrained"
    qgraph = shipped_graph() if bundled else read_quantised(name)
    kinds = (pixels,) if pixels else ("int8", "uint8") if bundled else ("int8",)
    report = export_all(qgraph, folder, settings, upsample=settings.upsample, pixels=kinds)
    if bundled:
        file, made = pretrained(), Path(folder) / f"student_dynamic_{kinds[0]}.tflite"
        share = equal_share(TFLiteUpscaler(file),
                            TFLiteUpscaler(made), parity_images())
        report["box"] = {"file": file.name, "sha256": sha256_file(file), "equal": share}
        write_json(Path(folder) / "export.json", report)
    return report
