"""The NPU estimate: what leaves the NPU, and what a missing or wrong file says."""

from importlib.util import find_spec

import pytest
from networks import deployed, quantised

from paperlib.errors import UserError
from paperlib.export import npu
from paperlib.export.convert import export_tflite, parity_images
from paperlib.export.npu import estimate_npu

U65 = ("ethos-u65-512",)
needs_vela = pytest.mark.skipif(find_spec("ethosu") is None, reason="ethos-u-vela (extra npu) is not installed")


def test_without_vela_there_is_no_estimate(monkeypatch, tmp_path):
    monkeypatch.setattr(npu, "find_spec", lambda name: None)
    assert estimate_npu(tmp_path / "x.tflite") == []


@needs_vela
def test_depth_to_space_leaves_the_npu_and_rows_do_not(tmp_path):
    qgraph = quantised(deployed("mobileone"), parity_images(1, 16))
    for form, left in (("depth_to_space", ["DEPTH_TO_SPACE"]), ("rows", [])):
        file = export_tflite(qgraph, tmp_path / f"{form}.tflite", 48, 64, form)
        (estimate,) = estimate_npu(file, U65)
        assert estimate["cpu_operators"] == left
        assert estimate["operators_cpu"] == len(left)
        assert 0 < estimate["cycles_npu"] <= estimate["cycles_total"]
        assert estimate["ms"] == pytest.approx(1e3 * estimate["cycles_total"] / estimate["clock_hz"])
        assert "not the challenge's device" in estimate["note"]


@needs_vela
def test_a_bad_file_is_one_line(tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"hello")
    for path in (tmp_path / "x.tflite", tmp_path / "missing.tflite"):
        with pytest.raises(UserError, match="Vela cannot compile"):
            estimate_npu(path)


@needs_vela
def test_published_file(assets):
    (estimate,) = estimate_npu(assets / "aio_mai" / "model.tflite", U65)
    assert estimate["cpu_operators"] == ["TRANSPOSE"]
    assert estimate["cycles_total"] == pytest.approx(176.4e6, rel=0.01)
