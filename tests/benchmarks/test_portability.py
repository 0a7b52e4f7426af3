"""The script behind the README's table of runtimes: the same pixels where a runtime is at hand; no time is asserted."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from browser import chromium

from paperlib.errors import UserError
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export.convert import export_tflite, shipped_graph
from paperlib.upscale import upscale_pixels

sys.path.append(str(Path(__file__).parents[2] / "results"))
import portability


def test_every_litert_gives_the_same_pixels(tmp_path):
    files = {"tile": export_tflite(shipped_graph(), tmp_path / "a.tflite", 24, 32, pixels="uint8")}
    lines, _ = portability.in_runtimes(files, {"tile": portability.photograph(24, 32)}, 1)
    for line in lines:
        if "OpenVINO" in line["runtime"]:
            assert ("skipped" in line) is (find_spec("openvino") is None)
            continue
        # TFLite's own kernels round twice where XNNPACK rounds once
        exact = line["runtime"] != "LiteRT, built-in kernels"
        assert line["max_difference"] <= (0 if exact else 3), line
        assert line["share_equal"] >= (1 if exact else 0.5)


def test_differences_are_counted():
    reference = np.array([0, 10, 250, 255], np.uint8)
    assert portability.compared(np.array([0, 11, 244, 0], np.uint8), reference) == {
        "share_equal": 0.25, "share_above_5": 0.5, "max_difference": 255}


def test_in_the_browser():
    if chromium() is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    images = {"tile": portability.photograph(40, 50)}
    expected = {"tile": upscale_pixels(load_upscaler("pretrained"), images["tile"])}
    try:
        line = portability.in_browser(images, expected, 1)
    except UserError as error:
        pytest.skip(str(error))
    assert (line["share_equal"], line["max_difference"]) == (1.0, 0)
