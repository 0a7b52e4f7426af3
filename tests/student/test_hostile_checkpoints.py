"""Checkpoints that a fuzzer found: tensors that are none, archives that unpack to more than they are, odd headers."""

import io
import json
import struct
import warnings
import zipfile
from hashlib import sha256

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.data import coffee

from paperlib.cli import main
from paperlib.errors import UserError
from paperlib.evaluation.upscalers import load_upscaler
from paperlib.settings import StudentSettings
from paperlib.student.models import load_model, read_published, read_weights, save_student
from paperlib.student.network import Student
from paperlib.training.state import load_state, save_state

TENSORS = {
    "spread": lambda value: torch.zeros(1).expand(10**6, 10**6),
    "strided": lambda value: torch.zeros(1).expand_as(value),
    "sparse": lambda value: value.to_sparse(), "without values": lambda value: value.to("meta"),
    "quantised": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "half": torch.Tensor.half,
    "double": torch.Tensor.double, "whole": torch.Tensor.int, "complex": lambda value: value.to(torch.complex64),
}


@pytest.fixture
def published(assets):
    return torch.load(assets / "aio_mai" / "ckpt_best_s2_deploy.pt", map_location="cpu", weights_only=True)


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_are_no_plain_tensors_of_their_type_are_told_in_one_line(tmp_path, published, kind, capfd):
    name = next(name for name, value in published["model"].items() if value.ndim == 4)
    published["model"][name] = TENSORS[kind](published["model"][name])
    torch.save(published, tmp_path / "m.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["inspect", str(tmp_path / "m.pt")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "m.pt" in line
    with pytest.raises(UserError, match=r"m\.pt (has weights that are no dense tensor|does not fit the architecture)"):
        read_published(tmp_path / "m.pt")


@pytest.mark.parametrize("kind", ["half", "double"])
def test_our_own_weights_in_another_type_are_told(tmp_path, kind):
    path = save_student(Student(StudentSettings(channels=4, blocks=1), "fused"), tmp_path / "m.safetensors")
    tensors, about = read_weights(path)
    save_file({key: TENSORS[kind](value) for key, value in tensors.items()}, path,
              metadata={"paperlib": json.dumps(about)})
    with pytest.raises(UserError, match=rf"{'float16' if kind == 'half' else 'float64'}, not float32"):
        load_model(path)


def packed(data: bytes, size: int = 0) -> bytes:
    """The same archive packed, its tensors replaced by `size` zero bytes each."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in archive.namelist():
            new.writestr(name, bytes(size) if size and "/data/" in name else archive.read(name))
    return out.getvalue()


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, published, monkeypatch):
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(5)}}, buffer)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    (tmp_path / "m.pt").write_bytes(packed(buffer.getvalue(), 10**8))
    assert (tmp_path / "m.pt").stat().st_size < 10**6
    with pytest.raises(UserError, match="packed"):
        read_published(tmp_path / "m.pt")
    assert main(["evaluate", str(tmp_path / "m.pt"), "--hr", str(tmp_path)]) == 2
    state = save_state(tmp_path, 3, {"step": 3, "identity": {}, "live": {}})
    data = packed(state.read_bytes())
    state.unlink()
    (tmp_path / f"state-000003-{sha256(data).hexdigest()[:16]}.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"state-000003.*is no training state \(ValueError\)"):
        load_state(tmp_path, {})


HEADERS = {
    "no list": b'{"a": 5}', "no tensor": b'{"a": {}}', "text": b'"x"', "null": b"null", "deep": b"[" * 100_000,
    "deep metadata": json.dumps({"__metadata__": {"paperlib": "[" * 100_000}}).encode(),
    "list": b'{"__metadata__": {"paperlib": "[1]"}}', "number": b'{"__metadata__": {"paperlib": 5}}',
    "no form": b'{"__metadata__": {"paperlib": "{\\"clamp\\": true}"}}', "metadata a list": b'{"__metadata__": [1]}',
    "shape of text": b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
    "no shape": b'{"a": {"dtype": "F32", "shape": null, "data_offsets": [0, 4]}}',
    "larger than the file": b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}',
    "beyond the end": b'{"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}',
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("light", [False, True])
def test_headers_of_any_kind_are_inspected_to_one_line(tmp_path, capsys, monkeypatch, kind, light):
    if light:
        monkeypatch.setattr("paperlib.export.inspection.find_spec", lambda name: None)
    header = HEADERS[kind]
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "m.safetensors" in line
    assert len(line) < len(str(tmp_path)) + 300


def test_a_checkpoint_can_be_read_by_whom_its_folder_lets_in(tmp_path):
    path = save_student(Student(StudentSettings(channels=4, blocks=1)), tmp_path / "m.safetensors")
    assert path.stat().st_mode & 0o777 == 0o644
    assert load_upscaler(path).radius


@pytest.mark.parametrize("huge", [3e38, -3e38])
def test_weights_that_overflow_make_no_black_picture(tmp_path, huge, capfd):
    torch.manual_seed(0)
    model = Student(StudentSettings(channels=4, blocks=1), "fused", clamp=True)
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
