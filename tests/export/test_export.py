"""Exported files: operators, grids, fixed and dynamic, tiles, float, the authors' way, bad files."""

import json

import numpy as np
import pytest
import torch
from networks import deployed, quantised

from paperlib.benchmarks.suite import bench_int8
from paperlib.data.tiles import run_padded, run_tiled, starts
from paperlib.errors import UserError
from paperlib.export.convert import export_all, export_tflite, parity_images
from paperlib.export.flatbuffer import read_graph
from paperlib.export.inspection import inspect_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.int8 import dequantised_graph
from paperlib.settings import ExportSettings
from paperlib.student.graph import image_batch, run_graph
from paperlib.student.models import deployment_graph

IMAGES = parity_images(2, 24)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fused():
    torch.manual_seed(3)
    return deployed("mobileone", blocks=2, channels=8)


@pytest.fixture(scope="module")
def qgraph(fused):
    return quantised(fused, IMAGES)


@pytest.fixture(scope="module")
def files(qgraph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    report = export_all(qgraph, folder, ExportSettings(height=20, width=28), IMAGES)
    return folder, report


def test_operators_are_the_graph_and_nothing_else(files):
    folder, report = files
    for form in ("dynamic", "fixed"):
        about = report["files"][f"student_{form}_int8.tflite"]
        assert about["operators"] == ["CONV_2D"] * 3 + ["ADD", "CONV_2D", "DEPTH_TO_SPACE"]
        assert about["float_tensors"] == []
        assert about["dynamic"] == (form == "dynamic")
    assert json.loads((folder / "export.json").read_text())["parity"] == report["parity"]
    assert report["parity"]["within_1_lsb"] > 0.999
    assert report["parity"]["max_lsb"] <= 2.01


def test_learnt_grids_are_in_the_file(files, qgraph):
    tensors = read_graph(files[0] / "student_dynamic_int8.tflite").tensors
    activations = [(t.scales[0], t.zero_points[0]) for t in tensors if t.shape[:1] == (1,)]
    for grid in qgraph.grids.values():
        assert any(zero == grid.zero_point and grid.scale == pytest.approx(scale, rel=1e-5)
                   for scale, zero in activations)
    kernels = sorted(scale for t in tensors if t.type == "int8" and len(t.scales) > 1 for scale in t.scales)
    learnt = sorted(float(scale) for scales in qgraph.weight_scales.values() for scale in scales)
    np.testing.assert_allclose(kernels, learnt, rtol=1e-5)


@pytest.mark.parametrize("size", [(20, 28), (45, 33), (20, 60), (8, 8), (9, 40), (30, 11), (1, 1), (8, 3)])
def test_fixed_file_gives_what_the_dynamic_one_gives(files, size):
    """Borders included, for images of any size from twice the reach on: four 3×3 convolutions, so
    8 pixels. Smaller ones come out too."""
    folder, _ = files
    picture = noise(*size)
    fixed = TFLiteUpscaler(folder / "student_fixed_int8.tflite", threads=1, overlap=10)(picture)
    assert fixed.shape == (3 * size[0], 3 * size[1], 3)
    assert np.ptp(fixed) > 0
    if min(size) >= 8:
        dynamic = TFLiteUpscaler(folder / "student_dynamic_int8.tflite", threads=1)
        assert np.array_equal(fixed, dynamic(picture))


def test_tiles_cover_and_crop_exactly():
    enlarge = lambda tile: tile.repeat(3, 0).repeat(3, 1)
    for size in ((1, 1), (5, 40), (40, 5), (32, 48), (33, 100), (100, 49), (64, 96)):
        picture = noise(*size)
        assert np.array_equal(run_tiled(enlarge, picture, 32, 48, 16), enlarge(picture))
    assert starts(100, 40, 16) == [0, 24, 48, 60]
    assert (starts(40, 40, 16), starts(30, 40, 16)) == ([0], [0, -10])
    with pytest.raises(ValueError, match="overlap"):
        starts(100, 16, 16)


def test_float_file_is_the_float_graph(files, qgraph):
    folder, _ = files
    graph = dequantised_graph(qgraph)
    expected = run_graph(graph, image_batch(IMAGES[0]))[0].permute(1, 2, 0).numpy()
    got = TFLiteUpscaler(folder / "student_float.tflite")(IMAGES[0])
    np.testing.assert_allclose(got, expected, atol=0.01)


@pytest.mark.parametrize("arch", ["mobileone", "abpn"])
def test_rows_form_has_the_same_output(tmp_path, arch):
    qgraph = quantised(deployed(arch), IMAGES)
    usual = export_tflite(qgraph, tmp_path / "a.tflite", 7, 9)
    rows = export_tflite(qgraph, tmp_path / "b.tflite", 7, 9, upsample="rows")
    assert "DEPTH_TO_SPACE" not in inspect_tflite(rows)["operators"]
    picture = IMAGES[0][:7, :9]
    assert np.array_equal(TFLiteUpscaler(rows, 1).raw(picture), TFLiteUpscaler(usual, 1).raw(picture))


def test_post_training_quantisation_as_the_authors_did(tmp_path, fused):
    graph = deployment_graph(fused)
    path = export_tflite(graph, tmp_path / "ptq.tflite", images=IMAGES)
    assert inspect_tflite(path, 8, 8)["float_tensors"] == []
    plain = run_graph(graph, image_batch(IMAGES[0]))[0].permute(1, 2, 0).numpy()
    assert 0 < np.abs(TFLiteUpscaler(path, 1)(IMAGES[0]) - plain).mean() < 6


@pytest.mark.parametrize("order", [1, -1])
def test_post_training_ranges_are_of_all_pictures(tmp_path, fused, order):
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (40, 255)][::order]
    path = export_tflite(deployment_graph(fused), tmp_path / "ptq.tflite", images=pictures)
    assert inspect_tflite(path, 8, 8)["inputs"][0]["scale"] == pytest.approx(1.0)


def test_model_of_another_kind(tmp_path):
    from tests.export.test_inspection import convert

    convert(tmp_path / "grey.tflite", lambda x: x * 2.0, 1, 8, 8, 1)
    with pytest.raises(UserError, match="no RGB upscaler"):
        TFLiteUpscaler(tmp_path / "grey.tflite")


def test_bench_names_every_file(files):
    folder, _ = files
    paths = [folder / "student_fixed_int8.tflite", folder / "student_dynamic_int8.tflite"]
    found = bench_int8(paths, height=16, width=16, rounds=2)["files"].values()
    assert [entry["input_size"] for entry in found] == [[20, 28], [16, 16]]
    assert all(entry["ms_1_thread"] > 0 and entry["ms_2_threads"] > 0 for entry in found)


def test_operators_of_the_published_files(assets):
    assert inspect_tflite(assets / "aio_mai" / "model.tflite")["counts"] == {
        "CONV_2D": 10, "ADD": 1, "RESHAPE": 2, "TRANSPOSE": 1, "MINIMUM": 1}


def test_the_authors_tiles_share_16_pixels():
    picture = np.tile(np.arange(120, dtype=np.uint8)[:, None], (20, 1, 3))
    flat = lambda x: np.full((3 * x.shape[0], 3 * x.shape[1], 3), float(x[0, 0, 0]))
    got = run_padded(flat, picture, 20, 40)  # tiles from 0, 24, 48, 72 and 80
    meet = [3 * column - 1 for column in (32, 56, 80, 96)]
    assert np.flatnonzero(np.diff(got[0, :, 0])).tolist() == meet


@pytest.mark.parametrize("size", [(7, 9), (20, 9), (24, 40)])
def test_the_authors_borders_are_reflected_pixels(size):
    """Away from the padded sides the result is the exact one; beside them it is what the padded
    image gives."""
    picture = noise(*size)
    # the pixel below and right
    after = lambda x: np.pad(x, ((0, 1), (0, 1), (0, 0)))[1:, 1:].astype(np.float32)
    blur = lambda x: (x.astype(np.float32) + after(x)).repeat(3, 0).repeat(3, 1)
    missing = [(0, max(0, most - side)) for most, side in zip((20, 24), size, strict=True)]
    padded = blur(np.pad(picture, (*missing, (0, 0)), mode="reflect"))
    got = run_padded(blur, picture, 20, 24, overlap=4)
    assert got.shape == (3 * size[0], 3 * size[1], 3)
    down, across = 3 * np.array(size) - 6
    np.testing.assert_array_equal(got[:down, :across], padded[:down, :across])
    if size[0] < 20:
        np.testing.assert_array_equal(got[-1, :across], padded[3 * size[0] - 1, :across])
