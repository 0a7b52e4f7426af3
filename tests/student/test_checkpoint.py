"""Other people's checkpoints: nothing is built from what is out of range, too large, foreign or no number."""

import json
import resource

import pytest
import torch
from safetensors.torch import save_file
from skimage.data import coffee

from paperlib.errors import UserError
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.quantisation.qat import prepare_qat, read_quantised, save_qat
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.models import load_model, read_published, read_weights, save_student
from paperlib.student.network import Student, fuse

SMALL = StudentSettings(channels=4, blocks=1)
GOOD = {"architecture": SMALL.model_dump(), "form": "fused", "clamp": True}


def write(path, metadata, tensors=None):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(tensors or fuse(Student(SMALL)).state_dict(), path, metadata={"paperlib": text})
    return path


def architecture(**changes):
    return GOOD | {"architecture": GOOD["architecture"] | changes}


@pytest.mark.parametrize("metadata", [
    *({name: value for name, value in GOOD.items() if name != gone} for gone in GOOD), "no JSON", "[1, 2]", "null",
    "[" * 100_000, GOOD | {"form": "other"}, GOOD | {"clamp": "perhaps"}, architecture(channels=10**9),
    architecture(blocks=0), architecture(arch="vgg"), architecture(channels="many"), GOOD | {"form": "qat"},
    GOOD | {"form": "qat", "quantiser": "paper", "nodes": [], "grids": {"stem": [0, 0]}},
    GOOD | {"form": "qat", "quantiser": "tflite", "grids": {}}])
def test_metadata_out_of_the_schema_are_told(tmp_path, metadata):
    path = write(tmp_path / "x.safetensors", metadata)
    for read in (load_model, load_upscaler, read_quantised):
        with pytest.raises(UserError, match=r"x\.safetensors (is no checkpoint of this version|has damaged metadata)"):
            read(path)


def test_good_metadata_pass_and_what_callers_added_is_kept(tmp_path):
    path = save_student(fuse(Student(SMALL)), tmp_path / "x.safetensors", stage="stage1", step=7)
    assert read_weights(path)[1]["step"] == 7
    for quantiser in ("paper", "tflite"):
        qat = prepare_qat(Student(SMALL), QuantSettings(quantiser=quantiser), [coffee()[:24, :24]])
        assert read_weights(save_qat(qat, tmp_path / f"{quantiser}.safetensors"))[1]["quantiser"] == quantiser
    for arch in ("fsrcnn", "abpn", "repdw", "repconv"):
        from paperlib.student.models import build_model

        model = build_model(StudentSettings(arch=arch, channels=8, blocks=2, init="bilinear"), "fused")
        load_model(save_student(model, tmp_path / f"{arch}.safetensors"))


def test_a_network_larger_than_its_file_is_never_built(tmp_path):
    path = write(tmp_path / "x.safetensors", architecture(channels=256, blocks=64, branches=16) | {"form": "expanded"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="does not fit the architecture"):
        load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; the network has 2.4 GB


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    tensors = fuse(Student(SMALL)).state_dict()
    tensors["body.0.conv.weight"][0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"no numbers, in body\.0\.conv\.weight"):
        load_upscaler(write(tmp_path / "x.safetensors", GOOD, tensors))


WEIGHT = torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize("content", [
    [1, 2], 5, {}, {1: WEIGHT}, {"model": [WEIGHT], "cfg": {"channels": 4, "n_rep": 1}},
    {"model": {1: WEIGHT}, "cfg": {"channels": 4, "n_rep": 1}}, {"model": {"a": 1}, "cfg": {"channels": 4, "n_rep": 1}},
    {"model": {"a": WEIGHT}, "cfg": {"channels": 0, "n_rep": 1}}, {"model": {"a": WEIGHT}, "cfg": []},
    {"model": {"a": WEIGHT}, "cfg": {"channels": 256, "n_rep": 64}},
    {"model": {"a": WEIGHT / 0}, "cfg": {"channels": 4, "n_rep": 1}},
    {"model_ema": {}}, {"model_ema": {1: WEIGHT}}, {"model_ema": [WEIGHT]}, {"model_ema": {"conv_in.weight": WEIGHT}},
    {"model_ema": {"conv_in.weight": torch.zeros(100_000, 1), "rep.0.reparam.weight": WEIGHT}},
    {"model_ema": {"conv_in.weight": torch.zeros(256, 1), "rep.0.reparam.weight": WEIGHT}}])
def test_foreign_pickles_are_told(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    for read in (read_published, read_quantised, load_upscaler):
        with pytest.raises(UserError, match=r"x\.pt"):
            read(tmp_path / "x.pt")


def test_the_authors_quantised_state_is_scored_as_a_fake_quantised_graph(assets):
    upscaler = load_upscaler(assets / "aio_mai" / "ckpt_best_s3_qat.pt")
    assert upscaler.about["quantiser"] == "paper"
    assert upscaler.about["file"].endswith("ckpt_best_s3_qat.pt")
    assert upscaler.radius == 10
    lr = coffee()[:30, :40]
    steps = upscaler(lr) / upscaler.qgraph.grids["output"].scale if "output" in upscaler.qgraph.grids else upscaler(lr)
    assert len(set(steps.round(3).ravel().tolist())) <= 256
