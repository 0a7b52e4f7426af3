"""The portability table: the same pixels where a runtime is at hand, a reason where not; no test asserts a time."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from paperlib.benchmarks import portability
from paperlib.benchmarks.browser import chromium
from paperlib.benchmarks.portability import bench_portability, compared
from paperlib.benchmarks.runtimes import SATURATION, WITHOUT_VNNI, processor
from paperlib.errors import UserError
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.export.npu import vela_available
from paperlib.upscale import upscale_pixels


@pytest.fixture(scope="module")
def result():
    return bench_portability(tile=24, height=32, width=40, rounds=1, browser=False)


def test_every_litert_gives_the_same_pixels(result):
    lines = [line for line in result["runtimes"] if line["runtime"].startswith(("LiteRT", "TensorFlow"))]
    assert [line["runtime"] for line in lines if line["threads"] == 2] == [
        "LiteRT, XNNPACK", "LiteRT, built-in kernels", "LiteRT, CompiledModel", "TensorFlow's interpreter"]
    for line in lines:
        # TFLite's own kernels round twice where XNNPACK rounds once
        exact = line["runtime"] != "LiteRT, built-in kernels"
        assert line["max_difference"] <= (0 if exact else 3), line
        assert line["share_equal"] >= (1 if exact else 0.5)
        assert line["ms_tile"] > 0
        assert line["ms_frame"] > 0
    assert lines[0]["share_equal"] == 1.0
    assert result["sizes"] == {"tile": [24, 24], "frame": [32, 40]}
    json.dumps(result)


def test_what_is_not_here_has_a_reason(result):
    lines = {line["runtime"]: line for line in result["runtimes"]}
    if find_spec("openvino") is None:
        assert "pip install openvino" in lines["OpenVINO"]["skipped"]
    else:
        assert lines["OpenVINO"]["share_equal"] > 0.8
        assert lines[WITHOUT_VNNI].get("note", SATURATION) == SATURATION


@pytest.mark.skipif(not vela_available(), reason="ethos-u-vela (extra npu) is not installed")
def test_vela_says_what_leaves_the_npu(result):
    left = {(line["form"], line["accelerator"]): line["cpu_operators"] for line in result["npu"]}
    assert len(left) == 6
    assert all(names == (["DEPTH_TO_SPACE"] if form == "depth_to_space" else []) for (form, _), names in left.items())


def test_differences_are_counted():
    reference = np.array([0, 10, 250, 255], np.uint8)
    assert compared(np.array([0, 11, 244, 0], np.uint8), reference) == {
        "share_equal": 0.25, "share_above_5": 0.5, "max_difference": 255}
    assert processor()["cores"] >= 1
    assert processor()["model"]


def test_in_the_browser():
    if chromium() is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    images = {"tile": portability.photograph(40, 50)}
    expected = {"tile": upscale_pixels(load_upscaler("pretrained"), images["tile"])}
    try:
        line = portability._in_browser(images, expected, 1)
    except UserError as error:
        pytest.skip(str(error))
    assert (line["share_equal"], line["max_difference"]) == (1.0, 0)
    assert line["ms_tile"] > 0
