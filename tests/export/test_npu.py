"""The NPU estimate: what leaves the NPU, and what a missing or wrong file says."""

import pytest
import torch
from networks import deployed

from paperlib.errors import UserError
from paperlib.export import npu
from paperlib.export.convert import export_tflite, parity_images
from paperlib.export.npu import estimate_if_available, estimate_npu, vela_available
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.settings import QuantSettings


def test_without_vela_there_is_a_sentence_and_no_estimate(monkeypatch, tmp_path):
    monkeypatch.setattr(npu, "vela_available", lambda: False)
    assert estimate_if_available(tmp_path / "x.tflite") == []
    with pytest.raises(UserError, match=r"\.\[npu\]"):
        estimate_npu(tmp_path / "x.tflite")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    qgraph = quantised_graph(prepare_qat(deployed("mobileone"), QuantSettings(quantiser="tflite"),
                                         parity_images(1, 16)))
    folder = tmp_path_factory.mktemp("npu")
    return {form: export_tflite(qgraph, folder / f"{form}.tflite", 48, 64, form) for form in ("depth_to_space", "rows")}


@pytest.mark.skipif(not vela_available(), reason="ethos-u-vela (extra npu) is not installed")
class TestVela:
    def test_depth_to_space_leaves_the_npu_and_rows_do_not(self, files):
        usual, rows = (estimate_npu(files[form]) for form in ("depth_to_space", "rows"))
        assert usual["cpu_operators"] == ["DEPTH_TO_SPACE"]
        assert usual["operators_cpu"] == 1
        assert rows["cpu_operators"] == []
        assert rows["operators_cpu"] == 0
        assert 0 < usual["cycles_npu"] <= usual["cycles_total"]
        assert rows["ms"] == pytest.approx(1e3 * rows["cycles_total"] / rows["clock_hz"])
        assert "not the challenge's device" in rows["note"]

    def test_bad_files_and_names(self, tmp_path, files):
        (tmp_path / "x.tflite").write_bytes(b"hello")
        with pytest.raises(UserError, match="Vela"):
            estimate_npu(tmp_path / "x.tflite")
        with pytest.raises(UserError, match="no TFLite file"):
            estimate_npu(tmp_path / "missing.tflite")
        with pytest.raises(UserError, match="accelerator"):
            estimate_npu(files["rows"], "ethos-u99")

    def test_published_file(self, assets):
        estimate = estimate_npu(assets / "aio_mai" / "model.tflite", "ethos-u65-512")
        assert estimate["cpu_operators"] == ["TRANSPOSE"]
        assert estimate["cycles_total"] == pytest.approx(176.4e6, rel=0.01)
