"""Checkpoints: ours and the authors' give what was saved; whatever else is read is told in one line."""

import json
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.data import coffee

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.quantisation.qat import prepare_qat, read_quantised, save_qat
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.models import build_model, fuse_model, load_model, read_published, read_weights, save_student
from paperlib.student.network import Student

SMALL = StudentSettings(channels=4, blocks=1)
GOOD = {"architecture": SMALL.model_dump(), "form": "fused", "clamp": True}
WEIGHT = torch.zeros(4, 3, 3, 3)


def write(path, metadata, tensors=None):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(tensors or fuse_model(Student(SMALL)).state_dict(), path, metadata={"paperlib": text})
    return path


def architecture(**changes):
    return GOOD | {"architecture": GOOD["architecture"] | changes}


@pytest.mark.parametrize("metadata", [
    *({name: value for name, value in GOOD.items() if name != gone} for gone in GOOD), "no JSON", "[1, 2]",
    "[" * 100_000, GOOD | {"form": "other"}, architecture(channels=10**9), architecture(blocks=0),
    architecture(channels=8), GOOD | {"form": "qat"}, GOOD | {"form": "qat", "quantiser": "paper", "nodes": [],
    "grids": {"stem": [0, 0]}}, GOOD | {"form": "qat", "quantiser": "tflite", "grids": {}}])
def test_metadata_that_name_no_network_of_the_weights_are_told(tmp_path, metadata):
    path = write(tmp_path / "x.safetensors", metadata)
    for read in (load_model, load_upscaler, read_quantised):
        with pytest.raises(UserError, match=r"x\.safetensors is "):
            read(path)


@pytest.mark.parametrize("header", [
    b'{"a": 5}', b"[" * 100_000, b'{"__metadata__": {"paperlib": 5}}',
    b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}'])
def test_headers_of_any_kind_are_told_in_one_line(tmp_path, capsys, header):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert main(["inspect", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "m.safetensors" in line


@pytest.mark.parametrize("content", [
    [1, 2], {}, {"model": {1: WEIGHT}, "cfg": {"channels": 4, "n_rep": 1}}, {"model": {"a": WEIGHT},
    "cfg": {"channels": 0, "n_rep": 1}}, {"model_ema": {"conv_in.weight": WEIGHT}},
    {"model_ema": {"conv_in.weight": torch.zeros(100_000, 1), "rep.0.reparam.weight": WEIGHT}}])
def test_foreign_pickles_are_told(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    for read in (read_published, read_quantised, load_upscaler):
        with pytest.raises(UserError, match=r"x\.pt"):
            read(tmp_path / "x.pt")


class Runs:
    """Pickled, it is a call."""

    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_pickle_is_executed(tmp_path, capsys):
    torch.save({"model": Runs()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt"):
        load_upscaler(tmp_path / "x.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", [
    torch.Tensor.to_sparse, lambda value: value.to("meta"), lambda _: torch.zeros(1).expand(10**6, 10**6),
    lambda value: value / 0, lambda value: value * float("nan")])
def test_published_weights_that_are_no_finite_numbers_are_told(tmp_path, assets, kind, capfd):
    published = torch.load(assets / "aio_mai" / "ckpt_best_s2_deploy.pt", map_location="cpu", weights_only=True)
    published["model"]["conv_in.weight"] = kind(published["model"]["conv_in.weight"])
    torch.save(published, tmp_path / "m.pt")
    assert main(["inspect", str(tmp_path / "m.pt")]) == 2
    assert "m.pt" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    tensors = fuse_model(Student(SMALL)).state_dict()
    tensors["body.0.conv.weight"][0, 0, 0, 0] = value
    with pytest.raises(UserError, match=r"body\.0\.conv\.weight is not finite"):
        load_upscaler(write(tmp_path / "x.safetensors", GOOD, tensors))


@pytest.mark.parametrize("huge", [3e38, -3e38])
def test_weights_that_overflow_make_no_black_picture(tmp_path, huge, capfd):
    model = Student(SMALL, "fused", clamp=True)
    with torch.no_grad():
        model.stem.weight[:] = huge
        model.head.weight[:, ::2] = -huge
    path = save_student(model, tmp_path / "m.safetensors")
    Image.fromarray(coffee()[:9, :12]).save(tmp_path / "a.png")
    for command in (["upscale", tmp_path / "a.png", "--model", path, "--out", tmp_path / "out"],
                    ["evaluate", path, "--hr", tmp_path]):
        assert main([str(word) for word in command]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "m.safetensors gave values that are no numbers" in line
    assert not any(tmp_path.glob("out/*"))


def test_every_network_is_read_as_it_was_saved_and_what_callers_added_is_kept(tmp_path):
    for arch in ("mobileone", "fsrcnn", "abpn", "repdw", "repconv"):
        for form in ("expanded", "fused"):
            settings = StudentSettings(arch=arch, channels=8, blocks=2, init="bilinear")
            model = build_model(settings, form, clamp=form == "fused")
            path = save_student(model, tmp_path / f"{arch}.safetensors", stage="stage1", step=7)
            again = load_model(path)
            assert (again.form, again.clamp, again.settings) == (model.form, model.clamp, model.settings)
            for key, value in model.state_dict().items():
                assert torch.equal(again.state_dict()[key], value)
            assert read_weights(path)[1]["step"] == 7
    assert path.stat().st_mode & 0o777 == 0o644  # whoever its folder lets in
    for quantiser in ("paper", "tflite"):
        qat = prepare_qat(Student(SMALL), QuantSettings(quantiser=quantiser), [coffee()[:24, :24]])
        path = save_qat(qat, tmp_path / f"{quantiser}.safetensors")
        assert read_weights(path)[1]["quantiser"] == quantiser
        with pytest.raises(UserError, match="is quantised"):
            load_model(path)
