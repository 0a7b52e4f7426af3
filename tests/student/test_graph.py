"""The deployment graph computes what the module computes, in every form, and is counted once."""

import pytest
import torch
from networks import ARCHS, deployed

from paperlib.quantisation.rewriting import channel_factors, equalise, exact_skip, rescale, scale_groups
from paperlib.settings import StudentSettings
from paperlib.student.graph import macs_per_lr_pixel, parameters, run_graph
from paperlib.student.models import build_model, deployment_graph, fuse_model
from paperlib.student.network import count_parameters


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (7, 5)])
def test_graph_equals_module(arch, size):
    model = deployed(arch)
    x = torch.rand(2, 3, *size) * 255
    torch.testing.assert_close(run_graph(deployment_graph(model), x), model(x), rtol=1e-5, atol=1e-3)


def test_published_size_and_cost():
    student = build_model(StudentSettings())
    graph = deployment_graph(fuse_model(student))
    assert sum(value.numel() for value in student.state_dict().values()) == 392_755
    assert parameters(graph) == 82_683
    assert macs_per_lr_pixel(graph) == 3 * 32 * 9 + 8 * 32 * 32 * 9 + 32 * 27 * 9
    for arch, size, macs in (("abpn", 42_539, 42_345), ("fsrcnn", 24_683, 24_336)):
        model = build_model(StudentSettings(arch=arch))
        assert count_parameters(model) == size
        assert macs_per_lr_pixel(deployment_graph(fuse_model(model))) == macs


def test_only_fused_models_have_a_graph_and_it_owns_its_weights():
    with pytest.raises(ValueError, match="fused"):
        deployment_graph(build_model(StudentSettings(blocks=1)))
    model = deployed("mobileone")
    graph = deployment_graph(model)
    with torch.no_grad():
        model.stem.weight.zero_()
    stem = graph["stem"]
    assert stem.weight.abs().max() > 0
    doubled = graph.with_weights({"stem": (stem.weight * 2, stem.bias)})
    assert torch.equal(doubled["stem"].weight, stem.weight * 2)
    assert graph["stem"] is stem


def skipped(graph, peak: float):
    """`exact_skip` with the same peak for every channel."""
    return exact_skip(graph, peak, torch.full_like(graph["body.1.conv"].bias, peak))


@pytest.mark.parametrize("peak", [40.0, 900.0])
def test_exact_skip_is_the_same_function_up_to_the_border(peak):
    graph = deployment_graph(deployed("mobileone"))
    other = skipped(graph, peak)
    assert "add" not in {node.op for node in other.nodes}
    x = torch.rand(1, 3, 6, 5) * 255
    torch.testing.assert_close(run_graph(other, x), run_graph(graph, x), rtol=1e-4, atol=1e-2)
    assert other["body.1.conv"].weight.abs().max() <= 2.51


def test_exact_skip_keeps_pixels_whole():
    maps = {}

    def after(node, out):
        maps[node.name] = out
        return out

    x = torch.randint(0, 256, (1, 3, 6, 5)).float()
    run_graph(skipped(deployment_graph(deployed("mobileone")), 100.0), x, after=after)
    assert torch.equal(maps["stem"], maps["stem"].round())
    assert torch.equal(maps["stem"][:, 4], x[:, 0])  # the patch's middle pixel
    assert torch.equal(maps["stem"][:, 27], torch.full_like(x[:, 0], 255.0))


def test_exact_skip_passes_pixels_on_through_two_inputs():
    """So that no weight of the head is near 1: its INT8 steps are half as large."""
    fused = deployed("mobileone")
    with torch.no_grad():  # stem channel 0 is red itself, and all of the head's channels pass it on
        fused.stem.weight[0] = 0
        fused.stem.weight[0, 0, 1, 1] = 1
        fused.head.weight[:, 0, 1, 1] = 1
    head = skipped(deployment_graph(fused), 100.0)["head"]
    channels = fused.settings.channels
    patch, image = head.weight[:, channels : channels + 28], head.weight[:, channels + 28 :]
    torch.testing.assert_close(patch[:, [4, 13, 22]], image)
    assert image[:, 0, 1, 1].abs().max() < 0.75
    assert (image + patch[:, [4, 13, 22]])[:, 0, 1, 1].mean() > 0.9


def test_exact_skip_leaves_silent_channels_out_and_reads_the_image_once_more_for_three():
    fused = deployed("mobileone")
    with torch.no_grad():
        fused.body[-1].conv.bias[[0, 2, 3]] = -1e9
    graph = deployment_graph(fused)
    channels = graph["stem"].weight.shape[0]
    peaks = torch.linspace(1, 400, channels)
    peaks[[0, 2, 3]] = 0
    other = exact_skip(graph, 300.0, peaks)
    assert other["body.1.conv"].weight.shape[0] == channels - 3
    assert other["head"].weight.shape[1] == channels - 3 + 28 + 2 * 3
    assert other["skip.concat"].inputs == ("body.1.conv", "stem", "input", "input")
    x = torch.rand(1, 3, 6, 5) * 255
    torch.testing.assert_close(run_graph(other, x), run_graph(graph, x), rtol=1e-4, atol=1e-2)
    fewer = torch.where(torch.arange(channels) == 2, 5.0, peaks)  # two silent ones do not pay for the image
    assert exact_skip(graph, 300.0, fewer)["head"].weight.shape[1] == channels - 2 + 28 + 3


def test_exact_skip_gives_a_channel_a_factor_between_its_own_peak_and_the_maps():
    fused = deployed("mobileone")
    with torch.no_grad():
        fused.body[-1].conv.weight *= 0.01  # far from the largest that is allowed
    graph = deployment_graph(fused)
    peaks = torch.full((graph["stem"].weight.shape[0],), 100.0)
    peaks[1], peaks[2] = 25.0, 0.01
    before, after = (part["body.1.conv"].bias for part in (graph, exact_skip(graph, 100.0, peaks)))
    factors = (after / before)[:4]
    torch.testing.assert_close(factors, 2.55 * torch.tensor([1.0, 2.0, 8**0.5, 1.0]), rtol=1e-4, atol=0)


def test_exact_skip_of_a_map_that_is_silent_everywhere_keeps_its_channels():
    graph = deployment_graph(deployed("mobileone"))
    other = exact_skip(graph, 1e-6, torch.zeros(graph["stem"].weight.shape[0]))
    assert other["body.1.conv"].weight.shape == graph["body.1.conv"].weight.shape


def test_exact_skip_is_for_the_student():
    for arch in ("abpn", "repdw"):
        with pytest.raises(ValueError, match="global skip"):
            exact_skip(deployment_graph(deployed(arch)), 100.0, torch.ones(8))


@pytest.mark.parametrize("arch", ARCHS)
def test_rescaling_channels_is_exact(arch):
    graph = deployment_graph(deployed(arch))
    x = torch.rand(1, 3, 6, 5) * 255
    factors = {name: torch.exp(torch.randn_like(factor)) for name, factor in channel_factors(graph, [x]).items()}
    scaled = rescale(graph, factors)
    assert any(not torch.equal(a.weight, b.weight) for a, b in zip(graph.nodes, scaled.nodes, strict=True)
               if a.op == "conv")
    torch.testing.assert_close(run_graph(scaled, x), run_graph(graph, x), rtol=1e-4, atol=1e-2)


def test_everything_on_the_skip_shares_its_factors():
    groups = scale_groups(deployment_graph(deployed("mobileone", blocks=3)))
    assert groups["stem"] == groups["skip"] == groups["body.2.conv"] == "stem"
    assert groups["body.0.conv"] == "body.0.conv"
    assert "head" not in groups
    assert "input" not in groups


def test_equalising_evens_out_activation_peaks():
    graph = deployment_graph(deployed("mobileone", blocks=3))
    images = [torch.rand(1, 3, 16, 16) * 255]

    def spread(g):
        peaks = {}

        def after(node, out):
            peaks[node.name] = out.abs().amax((0, 2, 3))
            return out

        run_graph(g, images[0], after=after)
        return float((peaks["body.1.conv"] + 1e-3).log().std())

    assert spread(equalise(graph, images)) < 0.8 * spread(graph)
