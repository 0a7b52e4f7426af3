"""Enlarging pictures: no seams, every kind of file, nothing overwritten."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea, coffee

from paperlib import upscale
from paperlib.cli import main
from paperlib.data import images
from paperlib.data.images import Picture
from paperlib.data.tiles import run_tiled
from paperlib.errors import UserError
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.evaluation.upscalers import Upscaler, load_upscaler
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.models import fuse_model
from paperlib.student.network import Student
from paperlib.teacher.network import MambaIRv2Light, TeacherShape, TeacherUpscaler
from paperlib.upscale import byte_runner, find_inputs, upscale_files, upscale_picture, upscale_pixels

BICUBIC = load_upscaler("bicubic")


def some_student(arch: str = "mobileone", blocks: int = 2) -> Student:
    """A student that starts bilinear and answers to every pixel in reach."""
    student = Student(StudentSettings(arch=arch, channels=8, blocks=blocks, init="bilinear"))
    with torch.no_grad():
        student.head.weight.add_(torch.randn_like(student.head.weight) * 0.2)
    return fuse_model(student)


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    qat = prepare_qat(some_student(), QuantSettings(quantiser="tflite"), [coffee()[:60, :60]])
    return export_tflite(quantised_graph(qat), tmp_path_factory.mktemp("int8") / "student.tflite")


def save(image: np.ndarray, path: Path, **options) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("arch", ["mobileone", "repdw"])
def test_reach_is_how_far_a_pixel_is_felt(arch):
    student = some_student(arch, blocks=3)
    radius = TorchUpscaler(student, arch).radius
    assert radius == 1 + 3 + 1
    x = torch.rand(1, 3, 25, 25, requires_grad=True)
    student(x * 255)[..., 36:39, 36:39].sum().backward()
    felt = x.grad[0].abs().sum(0) > 0
    inside = torch.zeros(25, 25, dtype=torch.bool)
    inside[12 - radius:13 + radius, 12 - radius:13 + radius] = True
    assert not felt[~inside].any()
    assert felt[12 - radius:13 + radius, 12 - radius].any()


def test_published_files_reach_ten_pixels(assets):
    for name in ("ckpt_best_s2_deploy.pt", "model.tflite", "model_none.tflite"):
        assert load_upscaler(assets / "aio_mai" / name).radius == 10


def test_tiles_leave_no_seam_in_float():
    lr, upscaler = coffee()[:61, :90], TorchUpscaler(some_student(), "student")
    whole = upscaler(lr)
    radius = upscaler.radius
    np.testing.assert_allclose(run_tiled(upscaler, lr, 20, 17, 2 * radius), whole, atol=1e-3)
    assert np.abs(run_tiled(upscaler, lr, 20, 17, 2 * radius - 4) - whole).max() > 0.1
    tiled = upscale_pixels(upscaler, lr, tile=16)
    assert tiled.dtype == np.uint8
    assert np.abs(tiled - whole).max() <= 0.501


def test_tiles_leave_no_seam_in_int8(int8_file):
    lr, upscaler = coffee()[:61, :90], TFLiteUpscaler(int8_file, threads=1)
    assert upscaler.radius == 4
    whole = np.rint(upscaler(lr)).astype(np.uint8)
    assert len(np.unique(whole)) > 50
    np.testing.assert_array_equal(byte_runner(upscaler)(lr), whole)
    for tile in (9, 24, 70):
        np.testing.assert_array_equal(upscale_pixels(upscaler, lr, tile=tile), whole)
    for shape in ((5, 300), (300, 5), (20, 300)):
        strip = np.resize(coffee()[:, :37], (*shape, 3))
        tiled = upscale_pixels(upscaler, strip, tile=40)
        np.testing.assert_array_equal(tiled, byte_runner(upscaler)(strip))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 40), (40, 5), (9, 100)])
def test_any_size(int8_file, shape):
    lr = chelsea()[:shape[0], :shape[1]]
    for upscaler in (BICUBIC, TorchUpscaler(some_student(), "student"), TFLiteUpscaler(int8_file, threads=1)):
        sr = upscale_pixels(upscaler, lr, tile=16)
        assert sr.shape == (3 * shape[0], 3 * shape[1], 3)
        assert np.abs(sr - upscaler(lr)).max() <= 0.501


@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, -128), (0.7, -128), (1.0, -127)])
def test_every_number_of_a_file_becomes_its_pixel(int8_file, monkeypatch, scale, zero_point):
    upscaler = TFLiteUpscaler(int8_file, threads=1)
    monkeypatch.setitem(upscaler.output, "quantization", (scale, zero_point))
    numbers = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    monkeypatch.setattr(upscaler, "raw", lambda lr: numbers)
    np.testing.assert_array_equal(byte_runner(upscaler)(numbers), np.rint(upscaler.dequantise(numbers)))


class Negative:
    """An upscaler of which nothing is known: repeats pixels, inverted."""

    name, about, radius = "negative", {}, None

    def __init__(self) -> None:
        self.sizes = []

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        self.sizes.append(lr.shape[:2])
        return np.kron(255 - lr, np.ones((3, 3, 1), np.uint8)).astype(np.float32)


@pytest.mark.parametrize("shape", [(8, 5000), (5000, 8), (1, 2000), (700, 900)])
def test_no_shape_is_run_in_more_than_a_tile(shape):
    upscaler, lr = Negative(), np.resize(coffee(), (*shape, 3))
    upscaler.radius = 4  # its pixels are known to depend on few others
    sr = upscale_pixels(upscaler, lr, tile=100)
    assert max(max(size) for size in upscaler.sizes) <= 100
    assert sum(height * width for height, width in upscaler.sizes) < 1.4 * shape[0] * shape[1]
    np.testing.assert_array_equal(sr, np.kron(255 - lr, np.ones((3, 3, 1), np.uint8)))


def test_what_memory_cannot_take_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    small, large = (save(coffee()[:side, :side], tmp_path / f"{side}.png") for side in (20, 40))
    monkeypatch.setattr(images, "free_memory", lambda: upscale.ENLARGED * 1_000)
    monkeypatch.setattr(images, "_decode", lambda image, path, decode=images._decode: (
        decode(image, path) if image.width == 20 else pytest.fail("decoded")))
    lines = []
    done, (failed,) = upscale_files([small, large], tmp_path / "out", BICUBIC, lines.append)
    assert [path.name for path in done] == ["20_x3.png"]
    assert "40.png has 40×40 pixels" in failed
    assert "memory" in lines[0]


def test_what_cannot_be_held_is_told_before_the_work(tmp_path):
    for name, alpha in (("a.jpg", coffee()[:9, :9, 0]), ("b.jpg", np.full((9, 9), 255, np.uint8))):
        save(np.dstack([coffee()[:9, :9], alpha]), tmp_path / name, format="PNG")
    save(np.zeros((1, 22_000, 3), np.uint8), tmp_path / "c.jpg")
    upscaler = Negative()
    done, failed = upscale_files([tmp_path], tmp_path / "out", upscaler)
    assert [path.name for path in done] == ["b_x3.jpg"]
    assert "is transparent and JPEG is not" in failed[0]
    assert "JPEG cannot hold 66000×3 pixels" in failed[1]
    assert upscaler.sizes == [(9, 9)]


def test_a_model_of_unknown_reach_sees_the_whole_picture_up_to_a_limit(monkeypatch):
    upscaler: Upscaler = Negative()
    upscale_pixels(upscaler, coffee()[:50, :60], tile=16)
    assert upscaler.sizes == [(50, 60)]
    monkeypatch.setattr("paperlib.upscale.MOST_AT_ONCE", 100)
    with pytest.raises(UserError, match="negative must see a picture whole, and 20×10"):
        upscale_pixels(upscaler, coffee()[:10, :20])
    teacher = TeacherUpscaler(MambaIRv2Light(TeacherShape(dim=8, groups=1, layers=1, states=3, tokens=6, rank=4)))
    assert upscale_pixels(teacher, coffee()[:10, :20]).shape == (30, 60, 3)  # it has tiles of its own


def test_alpha_is_enlarged_by_itself_and_grey_stays_grey():
    grey = np.repeat(coffee()[:20, :30, :1], 3, axis=2)
    alpha = np.full((20, 30), 200, np.uint8)
    alpha[:, 15:] = 0
    visible = alpha > 0
    result = upscale_picture(Negative(), Picture(grey, alpha, grey=True, icc=b"profile"))
    np.testing.assert_array_equal(result.rgb[::3, ::3][visible], 255 - grey[visible])
    assert (result.alpha[:, :39] == 200).all()
    assert (result.alpha[:, 51:] == 0).all()
    assert (result.grey, result.icc) == (True, b"profile")


def test_good_pictures_are_done_and_bad_ones_listed(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good = save(coffee()[:20, :30], folder / "a.png")
    (folder / "b.png").write_bytes(good.read_bytes()[:300])
    save(chelsea()[:2, :2], folder / "c.webp", lossless=True)
    lines, seen = [], []
    done, (missing, damaged) = upscale_files([folder, tmp_path / "none.png"], out, BICUBIC, lines.append,
                                             lambda i, n: seen.append((i, n)))
    assert done == sorted(out.iterdir()) == [out / "a_x3.png", out / "c_x3.webp"]
    assert "none.png" in missing
    assert "b.png" in damaged
    assert len(lines) == 3
    assert "memory" in lines[0]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(np.asarray(Image.open(done[0])), np.rint(BICUBIC(coffee()[:20, :30])))
    assert Image.open(done[1]).size == (6, 6)


def test_results_of_two_inputs_never_lie_on_each_other(tmp_path):
    (tmp_path / "other").mkdir()
    pictures = [save(coffee()[:9, :9], tmp_path / name) for name in ("a.png", "other/a.png")]
    done, failed = upscale_files(pictures, tmp_path / "out", BICUBIC)
    assert len(done) == len(failed) == 1


def test_inputs_are_files_folders_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    names = ["a.png", "a_x3.png", "b[1].png", "sub/c.jpg"]
    paths = [save(coffee()[:6, :6], tmp_path / name) for name in names]
    found = lambda *inputs: list(find_inputs(inputs)[0])
    assert found(tmp_path) == [paths[0], paths[2]]
    assert found(paths[1], tmp_path / "b[1].png") == paths[1:3]
    assert found(f"{tmp_path}/**/*.jpg", tmp_path / "sub", f"{tmp_path}/sub/*.jpg") == [paths[3]]
    (tmp_path / "empty").mkdir()
    files, (empty, none), _ = find_inputs([tmp_path / "empty", f"{tmp_path}/*.gif"])
    assert files == {}
    assert "holds no image" in empty
    assert "no picture at" in none


@pytest.mark.parametrize("name", ["pretrained", "bicubic"])
def test_invisible_colour_leaves_no_rim(name):
    rgb = np.full((40, 40, 3), (200, 90, 40), np.uint8)
    alpha = np.where(np.hypot(*np.mgrid[-20:20, -20:20]) < 14, 255, 0).astype(np.uint8)
    upscaler = load_upscaler(name)
    opaque = upscale_pixels(upscaler, rgb)
    result = upscale_picture(upscaler, Picture(rgb * (alpha > 0)[..., None], alpha))
    for background in (0, 255):
        share = result.alpha[..., None] / 255
        got, wanted = (colour * share + background * (1 - share) for colour in (result.rgb, opaque))
        assert np.abs(got - wanted).max() <= 1


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"])
def test_lossless_webp_stays_lossless(tmp_path, exif):
    path = save(coffee()[:20, :31], tmp_path / "a.webp", lossless=True, exif=exif)
    (done,), _ = upscale_files([path], tmp_path / "out", BICUBIC)
    np.testing.assert_array_equal(np.asarray(Image.open(done)), np.rint(BICUBIC(coffee()[:20, :31])))
    lossy = save(coffee()[:20, :31], tmp_path / "b.webp", exif=exif)
    assert not images.read_picture(lossy).lossless


def test_a_file_system_without_modes_is_written_to_and_an_unwritable_place_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "chmod", Mock(side_effect=PermissionError(1, "Operation not permitted")))
    picture = save(coffee()[:6, :6], tmp_path / "a.png")
    assert upscale_files([picture], tmp_path / "o", BICUBIC) == ([tmp_path / "o/a_x3.png"], [])
    done, (failed,) = upscale_files([picture], picture / "out", BICUBIC)
    assert (done, failed[:12]) == ([], "cannot write")


def test_a_second_run_in_place_enlarges_nothing_twice(tmp_path, capsys):
    for name in ("0.png", "1.gif"):
        save(coffee()[:6, :6], tmp_path / name)
    run = lambda *more: main(["upscale", *map(str, sorted(tmp_path.glob("*.??[gf]"))), "--out", str(tmp_path),
                              "--model", "bicubic", *more])
    assert run() == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 4
    assert run() == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "2 results that were there are left" in capsys.readouterr().out
    (tmp_path / "1_x3.png").unlink()
    assert main(["upscale", str(tmp_path), "--out", str(tmp_path), "--model", "bicubic", "--skip-existing"]) == 0
    assert "1 enlarged" in capsys.readouterr().out


def test_subfolders_are_named_or_their_tree_is_kept(tmp_path, capsys):
    album, names = tmp_path / "album", ["a.png", "sub/a.png", "sub/deep/b.png", ".hidden/c.png", "sub/._a.png"]
    for name in names:
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        save(coffee()[:6, :6], album / name)
    out = album / "large"
    run = lambda *more: main(["upscale", str(album), "--out", str(out), "--model", "bicubic", *more])
    assert run() == 0
    assert "has pictures in sub, left out: --recursive" in capsys.readouterr().out
    for _ in range(2):
        assert run("--recursive") == 0
        assert "3 enlarged" in capsys.readouterr().out
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["a_x3.png", "sub/a_x3.png", "sub/deep/b_x3.png"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_temporary_file(tmp_path, number):
    save(np.resize(coffee(), (1500, 1500, 3)), tmp_path / "a.png")
    out, left = tmp_path / "out", tmp_path / "out" / ".paperlib-left.png"
    out.mkdir()
    left.touch()
    os.utime(left, (1, 1))
    command = [sys.executable, "-m", "paperlib", "upscale", str(tmp_path), "--out", str(out), "--model", "bicubic"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,  # nohup ignores signals
                          preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)) as process:
        while process.poll() is None and not [path for path in out.glob(".paperlib-*") if path != left]:
            time.sleep(0.005)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1].splitlines()
    assert (process.returncode, said[-1:]) == (130, [b"paperlib: interrupted; what was finished is kept."])
    assert list(out.iterdir()) == []
