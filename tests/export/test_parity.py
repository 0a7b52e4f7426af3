"""The promise: a TFLite file computes its fake-quant forward, within one step on 99 % of the values.

Real converter, real interpreter, random small networks of every kind under both quantisers, odd sizes, black and white.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from networks import deployed, quantised

from paperlib.export.convert import export_tflite, parity
from paperlib.export.inspection import inspect_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.qat import freeze_observers, prepare_qat, quantised_graph
from paperlib.settings import QuantSettings
from paperlib.student.graph import image_batch

NETWORKS = st.sampled_from(["mobileone", "repconv", "repdw", "abpn", "fsrcnn"])


def pictures(height: int, width: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    extremes = (random.integers(0, 2, (height, width, 1)) * np.array([255, 255, 255])).astype(np.uint8)
    return [noise, extremes, np.zeros_like(noise), np.full_like(noise, 255)]


@settings(max_examples=14, deadline=None, derandomize=True, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(arch=NETWORKS, quantiser=st.sampled_from(["paper", "tflite"]), channels=st.integers(4, 9),
       blocks=st.integers(1, 3), height=st.integers(1, 17), width=st.integers(1, 17), seed=st.integers(0, 99),
       xnnpack=st.booleans(), skip=st.sampled_from(["add", "exact"]))
def test_tflite_equals_fake_quant(
    tmp_path_factory, arch, quantiser, channels, blocks, height, width, seed, xnnpack, skip,
):
    torch.manual_seed(seed)
    if quantiser == "paper" or arch not in ("mobileone", "repconv"):
        skip = "add"
    xnnpack = xnnpack or arch == "fsrcnn"  # 15 roundings deep; built-in kernels round twice, so steps add up
    model = prepare_qat(deployed(arch, blocks, channels), QuantSettings(
        quantiser=quantiser, equalise=quantiser == "tflite" and seed % 2 == 0, skip=skip),
        pictures(12, 12, seed + 1)[:2])
    model(torch.rand(2, 3, 9, 9) * 255)  # one more training-mode batch: observers and steps are live
    freeze_observers(model)
    model.eval()
    qgraph = quantised_graph(model)
    path = export_tflite(qgraph, tmp_path_factory.mktemp("parity") / "net.tflite")
    assert inspect_tflite(path, 8, 8)["float_tensors"] == []
    file = TFLiteUpscaler(path, threads=1, xnnpack=xnnpack)
    shown = pictures(height, width, seed)
    assert parity(qgraph, file, shown)["within_1_lsb"] >= 0.99
    distances = []
    for picture in shown:
        with torch.no_grad():
            expected = model(image_batch(picture)).clamp(0, 255)[0].permute(1, 2, 0).numpy()
        distances.append(np.abs(file(picture) - expected).ravel() / qgraph.grid("output").scale)
    assert np.mean(np.concatenate(distances) < 1.01) >= 0.99


@pytest.mark.parametrize("quantiser", ["paper", "tflite"])
def test_dead_channels_and_saturated_output(tmp_path, quantiser):
    """A channel without weights, a map that is constantly 0, and results far outside 0..255."""
    fused = deployed("mobileone")
    with torch.no_grad():
        fused.stem.weight[0].zero_()
        fused.body[0].conv.bias[1] = -1e6
        fused.head.weight.mul_(8)
    qgraph = quantised(fused, pictures(8, 8, 0)[:1], quantiser)
    file = TFLiteUpscaler(export_tflite(qgraph, tmp_path / "net.tflite"), threads=1)
    for picture in pictures(5, 6, 3):
        assert parity(qgraph, file, [picture])["within_1_lsb"] >= 0.99


@pytest.mark.parametrize("quantiser", ["paper", "tflite"])
@pytest.mark.parametrize("arch", ["mobileone", "repdw", "abpn"])
@pytest.mark.parametrize(("factor", "bias"), [(1.0, -1e3), (1e-4, -1e-3)])
def test_a_dead_block_can_be_exported_and_run(tmp_path, quantiser, arch, factor, bias):
    """Its map is (nearly) zero everywhere: a step as small as that map asks for would be refused by XNNPACK."""
    fused = deployed(arch, blocks=2, channels=8)
    last = [module for name, module in fused.named_modules() if "body" in name and isinstance(module, torch.nn.Conv2d)]
    with torch.no_grad():
        last[-1].weight.mul_(factor)
        last[-1].bias.fill_(bias)
    images = pictures(12, 12, 1)
    qgraph = quantised(fused, images, quantiser)
    path = export_tflite(qgraph, tmp_path / "net.tflite")
    for xnnpack in (True, False):
        file = TFLiteUpscaler(path, threads=1, xnnpack=xnnpack)
        for picture in images:
            assert parity(qgraph, file, [picture])["within_1_lsb"] >= 0.99
