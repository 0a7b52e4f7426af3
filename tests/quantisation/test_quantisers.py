"""Both quantisers: grids, gradients, curriculum, round trips, and the published fake-quant graph."""

import copy

import numpy as np
import pytest
import torch
from networks import ARCHS, deployed, quantised
from timm.utils import ModelEmaV3

from paperlib.errors import UserError
from paperlib.evaluation.metrics import psnr_rgb
from paperlib.evaluation.torch_upscalers import QuantisedUpscaler, TorchUpscaler
from paperlib.export.convert import export_tflite, parity
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.diagnostics import drop_decomposition, layer_ranges, layer_sqnr
from paperlib.quantisation.fx_qat import FakeQuantize, read_published_qat
from paperlib.quantisation.int8 import (
    IMAGE_GRID,
    QParams,
    best_grid,
    calibrate,
    channel_scales,
    dequantised_graph,
    fake_quant_bias,
    fake_quant_weight,
    grid_of_range,
    post_training_graph,
    qparam_owners,
    run_quantised,
)
from paperlib.quantisation.qat import (
    float_graph,
    freeze_observers,
    prepare_qat,
    quantised_graph,
    read_quantised,
    save_qat,
)
from paperlib.quantisation.rewriting import equalise
from paperlib.settings import QuantSettings
from paperlib.student.graph import image_batch, run_graph
from paperlib.student.models import deployment_graph, save_student

QUANTISERS = ("paper", "tflite")
IMAGES = [np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8) for seed in (1, 2)]


def prepared(quantiser: str, arch: str = "mobileone", **settings):
    return prepare_qat(deployed(arch), QuantSettings(quantiser=quantiser, **settings), IMAGES)


def train(model, steps: int, lr: float = 1e-3):
    """A few steps towards nearest-neighbour upscaling; returns the losses."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        x = torch.randint(0, 256, (4, 3, 8, 8), generator=generator).float()
        loss = (model(x) - torch.nn.functional.interpolate(x, scale_factor=3)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fake_quantisation_is_rounding_to_the_grid():
    grid, x = QParams(0.3, -28), torch.randn(1000) * 40
    q = torch.clamp(torch.round(x / 0.3) - 28, -128, 127)
    torch.testing.assert_close(grid.fake(x), (q + 28) * 0.3, rtol=0, atol=1e-4)
    assert (grid.low, grid.high) == (0.3 * -100, 0.3 * 155)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (2.0, 9.0), (-4.0, -1.0), (0.0, 0.0)])
def test_every_grid_has_an_exact_zero_and_covers_its_range(low, high):
    grid = grid_of_range(low, high)
    assert float(grid.fake(torch.tensor(0.0))) == 0.0
    assert grid.low - grid.scale <= low <= high <= grid.high + grid.scale


def test_weight_scales_are_per_output_channel_and_narrow():
    weight = torch.randn(6, 4, 3, 3) * torch.arange(1, 7).reshape(-1, 1, 1, 1)
    scale = channel_scales(weight)
    q = fake_quant_weight(weight, scale) / scale.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(q, q.round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(q.abs().flatten(1).amax(1), torch.full((6,), 127.0))


def test_gradient_passes_straight_through_inside_the_range():
    bias, step = torch.tensor([0.26, -1.9], requires_grad=True), torch.tensor([0.1, 0.5])
    rounded = fake_quant_bias(bias, step)
    torch.testing.assert_close(rounded, torch.tensor([0.3, -2.0]))
    rounded.sum().backward()
    assert torch.equal(bias.grad, torch.ones(2))
    x = (torch.randn(500) * 30).requires_grad_()
    y = QParams(0.2, -100).fake(x)
    weight = torch.randn(500)
    (y * weight).sum().backward()
    q = torch.round(x.detach() / 0.2) - 100
    inside = (q >= -128) & (q <= 127)
    assert 0 < inside.float().mean() < 1
    assert torch.equal(x.grad, weight * inside)


def test_moved_tensors_share_a_grid_and_images_keep_theirs():
    graph = deployment_graph(deployed("abpn"))
    owners, grids = qparam_owners(graph), calibrate(graph, IMAGES)
    assert owners["anchor"] == "input"
    assert owners["output"] == owners["shuffle"] == "sum"
    assert owners["head"] == "head"
    assert grids["input"] == grids["sum"] == IMAGE_GRID
    assert grids["head"] != IMAGE_GRID


def test_searched_range_beats_minimum_and_maximum():
    values = torch.cat([torch.randn(5000), torch.tensor([40.0, -1.0])])
    low, high = float(values.min()), float(values.max())
    error = lambda grid: float((grid.fake(values) - values).square().mean())
    assert error(best_grid(values, low, high)) < error(grid_of_range(low, high))
    ramp = torch.linspace(0, 10, 2000)
    assert best_grid(ramp, 0.0, 10.0).high == pytest.approx(10.0)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_quantised_graph_computes_what_was_trained(quantiser, arch):
    model = prepared(quantiser, arch).eval()
    qgraph = quantised_graph(model)
    x = image_batch(IMAGES[0])
    with torch.no_grad():
        trained = model(x).clamp(0, 255)
        steps = (trained - run_quantised(qgraph, x, int32_bias=quantiser == "tflite")).abs()
        steps /= qgraph.grid("output").scale
    # FX leaves PReLU slopes in float, and its sums run in another order: single roundings may tip.
    assert (steps <= 1.01).float().mean() > 0.995
    equal = (steps < 0.01).float().mean()
    assert equal > (0.5 if (quantiser, arch) == ("paper", "fsrcnn") else 0.97)
    assert 0 < (run_quantised(qgraph, x) - run_graph(qgraph.graph, x)).abs().mean() < 8


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_training_reaches_every_weight_and_lowers_the_loss(quantiser):
    model = prepared(quantiser)
    losses = train(model, 30)
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0
               for name, parameter in model.named_parameters() if "weight" in name)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_only_the_papers_grids_follow_the_values_and_only_until_they_are_frozen():
    for quantiser in QUANTISERS:  # those of tflite are calibrated and stay
        model = prepared(quantiser)
        train(model, 2)
        before = quantised_graph(model)
        train(model, 2)
        moved = quantised_graph(model)
        assert (moved.grids == before.grids) == (quantiser == "tflite")
        freeze_observers(model)
        train(model, 3)
        after = quantised_graph(model)
        assert after.grids == moved.grids
        assert not torch.equal(after.graph["stem"].weight, moved.graph["stem"].weight)


def test_validation_images_move_no_grid():
    model = prepared("paper").eval()
    state = copy.deepcopy(model.state_dict())
    model(torch.rand(1, 3, 9, 9) * 1000)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()(torch.rand(1, 3, 9, 9) * 1000)
    assert any(not torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_state_resumes_bit_for_bit(quantiser):
    model, twin = prepared(quantiser), prepared(quantiser)
    train(model, 2)
    twin.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    other = copy.deepcopy(model)
    assert train(model, 3) == train(twin, 3) == train(other, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_ema_of_a_quantised_model(quantiser):
    model = prepared(quantiser)
    ema = ModelEmaV3(model, decay=0.5, exclude_buffers=True)
    start = quantised_graph(model).graph["stem"].weight
    train(model, 2)
    ema.update(model)
    expected = (start + quantised_graph(model).graph["stem"].weight) / 2
    torch.testing.assert_close(quantised_graph(ema.module).graph["stem"].weight, expected)


@pytest.mark.parametrize("quantiser", QUANTISERS)
@pytest.mark.parametrize("arch", ["mobileone", "fsrcnn"])
def test_saved_model_is_the_same_model(tmp_path, quantiser, arch):
    model = prepared(quantiser, arch)
    train(model, 1)
    expected = quantised_graph(model)
    loaded = read_quantised(save_qat(model, tmp_path / "qat.safetensors", stage="stage3"))
    assert (loaded.grids, loaded.quantiser) == (expected.grids, quantiser)
    assert all(torch.equal(loaded.weight_scales[name], scale) for name, scale in expected.weight_scales.items())
    x = image_batch(IMAGES[0])
    found = run_quantised(loaded, x, int32_bias=quantiser == "tflite")
    assert torch.equal(found, run_quantised(expected, x, int32_bias=quantiser == "tflite"))
    if (quantiser, arch) != ("paper", "fsrcnn"):  # FX leaves PReLU's slopes in float
        assert torch.equal(found, model.eval()(x).clamp(0, 255))


def test_exact_skip_has_no_noise_and_is_trained_and_saved(tmp_path):
    fresh = quantised(deployed("mobileone"), IMAGES, skip="exact")
    assert "add" not in {node.op for node in fresh.graph.nodes}
    assert {row["name"]: row["sqnr_db"] for row in layer_sqnr(fresh, IMAGES)}["stem"] > 120
    model = prepared("tflite", skip="exact")
    assert np.mean(train(model, 20)[-3:]) < train(prepared("tflite"), 1)[0]
    assert quantised_graph(model).grid("stem") == IMAGE_GRID
    loaded = read_quantised(save_qat(model, tmp_path / "qat.safetensors"))
    x = image_batch(IMAGES[0])
    assert torch.equal(run_quantised(loaded, x), model.eval()(x))


def test_channels_left_out_are_left_out_of_the_checkpoint_and_of_the_file(tmp_path):
    fused = deployed("mobileone")
    whole = quantised(fused, IMAGES, skip="exact").graph
    last = whole["skip.concat"].inputs[0]
    with torch.no_grad():
        fused.body[-1].conv.bias[:3] = -1e9
    model = prepare_qat(fused, QuantSettings(quantiser="tflite", skip="exact"), IMAGES)
    assert len(quantised_graph(model).graph[last].weight) == len(whole[last].weight) - 3
    assert quantised_graph(model).graph["skip.concat"].inputs == (last, "stem", "input", "input")
    train(model, 2)
    loaded = read_quantised(save_qat(model, tmp_path / "qat.safetensors"))
    x = image_batch(IMAGES[0])
    assert torch.equal(run_quantised(loaded, x), model.eval()(x))
    file = TFLiteUpscaler(export_tflite(quantised_graph(model), tmp_path / "net.tflite"), threads=1)
    assert parity(quantised_graph(model), file, IMAGES[:1])["within_1_lsb"] >= 0.99


def test_float_checkpoint_is_not_a_quantised_one(tmp_path):
    path = save_student(deployed("mobileone"), tmp_path / "fused.safetensors")
    with pytest.raises(UserError, match="not quantised"):
        read_quantised(path)


def test_a_silent_channel_is_not_magnified():
    fused = deployed("mobileone")
    with torch.no_grad():
        fused.body[0].conv.weight[0] *= 1e-6
        fused.body[0].conv.bias[0] = -1.0
    graphs = deployment_graph(fused), equalise(deployment_graph(fused), IMAGES)
    before, after = (graph["body.0.conv"].weight[0].abs().max() for graph in graphs)
    assert after < 20 * before  # by the factors of its inputs alone
    outputs = [run_graph(graph, image_batch(IMAGES[0])) for graph in graphs]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-2)


def test_equalised_model_starts_as_the_same_function():
    fused, x = deployed("mobileone"), image_batch(IMAGES[0])
    plain, equal = (quantised(fused, IMAGES, equalise=choice).graph for choice in (False, True))
    assert not torch.equal(plain["stem"].weight, equal["stem"].weight)
    torch.testing.assert_close(run_graph(equal, x), run_graph(plain, x), rtol=1e-4, atol=1e-2)


def test_diagnosis_agrees_with_itself():
    qgraph = quantised(deployed("mobileone"), IMAGES)
    noise = {row["name"]: row["sqnr_db"] for row in layer_sqnr(qgraph, IMAGES)}
    assert noise["input"] == float("inf")
    assert 5 < noise["output"] < 60
    ranges = {row["name"]: row for row in layer_ranges(qgraph.graph, IMAGES, qgraph)}
    assert ranges["body.0.conv"]["low"] == 0.0
    assert ranges["stem"]["high"] == max(ranges["stem"]["channel_high"])
    target = run_graph(qgraph.graph, image_batch(IMAGES[0]))[0].permute(1, 2, 0).numpy()
    score = lambda upscale: -float(np.square(upscale(IMAGES[0]) - target).mean())
    rows = drop_decomposition(qgraph.graph, qgraph, score)
    float_, weights, activations, both = (row["drop"] for row in rows)
    assert float_ == 0.0
    assert 0 < weights < both
    assert 0 < activations < both


@pytest.mark.parametrize("changes", [{"skip": "exact", "equalise": True}, {"skip": "add"}])
def test_the_drop_is_counted_from_the_network_before_any_rounding(changes):
    """Weights rounded to data are rounded: the drop's float, and the layers' ranges, are the fused network's."""
    fused = deployed("mobileone")
    settings = QuantSettings(quantiser="tflite", rounding="data", **changes)
    exact, qgraph = float_graph(fused, settings, IMAGES), quantised_graph(prepare_qat(fused, settings, IMAGES))
    hr = np.random.default_rng(5).integers(0, 256, (36, 30, 3), dtype=np.uint8)
    score = lambda upscale: psnr_rgb(upscale(IMAGES[0]), hr)
    rows = {row["what"]: row for row in drop_decomposition(exact, qgraph, score)}
    assert rows["float"]["psnr"] == pytest.approx(score(TorchUpscaler(fused, "fused")), abs=1e-5)
    rounded = score(lambda lr: run_graph(qgraph.graph, image_batch(lr))[0].permute(1, 2, 0).numpy())
    assert abs(rounded - rows["float"]["psnr"]) > 1e-4  # the weights that the quantiser starts from are another network
    assert rows["weights only"]["psnr"] == pytest.approx(rounded, abs=1e-3)
    maps = {}
    run_graph(exact, image_batch(IMAGES[0]), after=lambda node, out: maps.setdefault(node.name, out))
    ranges = {row["name"]: row["high"] for row in layer_ranges(exact, IMAGES[:1], qgraph)}
    assert ranges["head"] == float(maps["head"].max())


def test_float_form_does_not_depend_on_where_between_grid_values_the_latent_weights_stand():
    model = prepared("tflite")
    before = quantised_graph(model)
    with torch.no_grad():
        for node in before.graph.nodes:
            if node.weight is not None:
                rounded = dequantised_graph(before)[node.name].weight
                small = rounded.abs() < 0.9 * rounded.abs().amax((1, 2, 3), keepdim=True)  # the largest sets the scale
                step = before.weight_scales[node.name][:, None, None, None]
                model.kernels[node.name.replace(".", "_")].weight.copy_(rounded + 0.4 * step * small)
    after = quantised_graph(model)
    x = image_batch(IMAGES[0])
    assert (run_graph(after.graph, x) - run_graph(before.graph, x)).abs().max() > 1  # the latent weights do differ
    torch.testing.assert_close(run_graph(dequantised_graph(after), x), run_graph(dequantised_graph(before), x))
    assert torch.equal(run_graph(dequantised_graph(after), x), run_quantised(after, x, activations=False))


def test_post_training_starts_from_latent_weights_only_under_the_papers_quantiser():
    for quantiser in QUANTISERS:
        qgraph = quantised(deployed("mobileone"), IMAGES, quantiser)
        start, latent = post_training_graph(qgraph)["head"].weight, qgraph.graph["head"].weight
        assert torch.equal(start, latent) is (quantiser == "paper")
        assert torch.equal(start, dequantised_graph(qgraph)["head"].weight) is (quantiser == "tflite")


def test_published_fake_quant_is_reproduced(assets, golden):
    qgraph = read_published_qat(assets / "aio_mai" / "ckpt_best_s3_qat.pt")
    reference = np.load(golden / "student_butterfly.npz")
    difference = np.abs(QuantisedUpscaler(qgraph)(reference["lr"]) - reference["s3_fakequant"])
    step = qgraph.grid("output").scale
    assert (difference > 0.01 * step).mean() < 0.01  # sums in another order tip a rounding here and there
    assert (difference > 1.01 * step).mean() < 1e-4


def published_state(model) -> dict[str, torch.Tensor]:
    """A `paper` model's state as the authors number and name theirs: one operator for the clamp, grids in a row."""
    state = {name.removeprefix("fx."): value.clone() for name, value in model.state_dict().items()}
    last = max(int(name.split(".")[0].rsplit("_", 1)[1]) for name in state if name.startswith("activation_post"))
    state = {name: value for name, value in state.items() if not name.startswith(f"activation_post_process_{last}.")}
    renames = (("stem.", "conv_in."), ("body.", "rep."), (".conv.", ".reparam."), ("head.", "conv_out."))
    for ours, theirs in renames:
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state


def test_published_grids_go_to_the_nodes_that_they_observe(tmp_path):
    model = prepared("paper")
    torch.save({"model_ema": published_state(model)}, tmp_path / "qat.pt")
    read, ours = read_published_qat(tmp_path / "qat.pt"), quantised_graph(model)
    assert read.grids == ours.grids
    assert len(set(read.grids.values())) > 5
    assert all(torch.equal(read.weight_scales[name], scale) for name, scale in ours.weight_scales.items())
    x = image_batch(IMAGES[0])
    assert torch.equal(run_quantised(read, x), run_quantised(ours, x))


@pytest.mark.parametrize("change", ["one too many", "one missing"])
def test_published_state_with_other_grids_is_refused(tmp_path, change):
    state = published_state(prepared("paper"))
    if change == "one too many":
        state["activation_post_process_40.scale"] = torch.ones(1)
    else:
        del state["activation_post_process_4.scale"]
    torch.save({"model_ema": state}, tmp_path / "qat.pt")
    with pytest.raises(UserError, match="activation_post_process_4"):
        read_published_qat(tmp_path / "qat.pt")


def test_observers_are_ours_everywhere():
    model = prepared("paper", "fsrcnn")
    kinds = {type(module) for module in model.modules() if "FakeQuantize" in type(module).__name__}
    assert kinds == {FakeQuantize}
