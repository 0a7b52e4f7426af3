"""A disk that is full, the real thing: each write says so in one line, names what to set, and leaves the old files."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import coffee

from paperlib.cli import main
from paperlib.data.download import download
from paperlib.data.pixel_store import open_store
from paperlib.errors import UserError
from paperlib.files import file_lock
from paperlib.quantisation.qat import prepare_qat, save_qat
from paperlib.run import open_run
from paperlib.running import reproduce
from paperlib.running.reproduce import write_results
from paperlib.settings import DataSettings, QuantSettings, StudentSettings
from paperlib.student.models import fuse_model, weights_hash
from paperlib.student.network import Student
from paperlib.teacher.distillation import TeacherSource, outputs_key, teacher_outputs
from paperlib.teacher.network import MambaIRv2Light, TeacherShape
from paperlib.training.state import load_state, save_state
from tests.running.test_reproduce import write_notebook

FULL = r"No space left on device\. Free some space or choose another folder with "


def fill(disk, left: int = 0) -> None:
    """Fill a disk but for `left` bytes."""
    free = lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "filler").open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, free() - left)
    assert left or free() == 0


def told(capfd) -> str:
    (line,) = capfd.readouterr().err.splitlines()
    return line


def hidden(folder) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name not in (".lock", ".state.json", ".kernel.log")]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_an_enlarged_picture(small_disk, tmp_path, capfd, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a{suffix}")
    fill(small_disk, 8192)
    command = ["upscale", str(tmp_path / f"a{suffix}"), "--out", str(small_disk / "out"), "--model", "bicubic"]
    assert main(command) == 2
    assert f"a_x3{suffix}: No space left on device. Free some space" in told(capfd)
    assert hidden(small_disk) == []
    (small_disk / "filler").unlink()
    assert main(command) == 0


def test_scores_a_description_the_page_and_exported_files(small_disk, tmp_path, capfd):
    Image.fromarray(coffee()[:60, :60]).save(tmp_path / "a.png")
    torch.manual_seed(0)
    student = fuse_model(Student(StudentSettings(channels=4, blocks=1, init="bilinear")))
    qat = prepare_qat(student, QuantSettings(quantiser="tflite"), [coffee()[:24, :24]])
    path = save_qat(qat, tmp_path / "qat.safetensors")
    (small_disk / "out").mkdir()
    for left, command in (
            (0, f"evaluate bicubic --hr {tmp_path} --json {small_disk}/scores.json"),
            (0, f"inspect {path} --json {small_disk}/about.json"),
            (0, f"page --out {small_disk}/page.html"),
            (12_288, f"export {path} --out {small_disk}/out --height 24 --width 24")):
        (small_disk / "filler").unlink(missing_ok=True)
        fill(small_disk, left)
        assert main(command.split()) == 2
        assert "No space left on device. Free some space" in told(capfd)
        assert hidden(small_disk) == []
        assert not list(small_disk.glob("*.*"))


def test_records_tables_summary_and_report(small_disk, tmp_path, capfd):
    run = open_run("smoke", small_disk / "out")
    run.record("01_data", [])
    write_results(run, {})
    report, record = small_disk / "out" / "report.html", small_disk / "out" / "records" / "01_data.json"
    before = {path: path.read_bytes() for path in (report, record, small_disk / "out" / "summary.md")}
    fill(small_disk)
    for work in (lambda: run.record("01_data", [{"table": "x" * 5000}]), lambda: write_results(run, {})):
        with pytest.raises(UserError, match=FULL + "--out"):
            work()
    for number in (4096, 8192, report.stat().st_size // 2):  # whichever file it is that no longer fits
        (small_disk / "filler").unlink()
        fill(small_disk, number)
        with pytest.raises(UserError, match=FULL + "--out"):
            write_results(run, {})
    assert hidden(small_disk) == []
    assert all(len(path.read_bytes()) >= len(content) // 2 for path, content in before.items())
    assert record.read_bytes() == before[record]


def test_a_training_state(small_disk):
    state = {"step": 3, "identity": {}, "live": {"w": torch.zeros(200_000)}, "ema": {}, "optimizer": {}}
    first = save_state(small_disk / "stage1", 3, state)
    fill(small_disk, 100_000)
    with pytest.raises(UserError, match=FULL + "--out"):
        save_state(small_disk / "stage1", 4, state | {"step": 4})
    assert list((small_disk / "stage1").iterdir()) == [first]
    assert load_state(small_disk / "stage1", {})["step"] == 3


def test_a_download(small_disk, tmp_path):
    (tmp_path / "a").write_bytes(bytes(200_000))
    fill(small_disk, 50_000)
    with pytest.raises(UserError, match=FULL + "PAPERLIB_CACHE"):
        download((tmp_path / "a").as_uri(), small_disk / "a", 200_000, "0" * 64)


@pytest.fixture
def teacher(small_disk, monkeypatch):
    """A store of three small photographs on the small disk, and a teacher whose outputs are not computed yet."""
    monkeypatch.setenv("PAPERLIB_CACHE", str(small_disk / "cache"))
    store = open_store(DataSettings(train_crop=120, max_train=3))
    torch.manual_seed(0)
    model = MambaIRv2Light(TeacherShape(dim=8, groups=1, layers=1, states=3, tokens=6, rank=4)).eval()
    return store, TeacherSource(model, "small", weights_hash(model), "for a test")


def test_outputs_of_a_teacher(small_disk, teacher):
    store, source = teacher
    for left in (20_000, 60_000):  # the first does not fit, or the second
        fill(small_disk, left)
        with pytest.raises(UserError, match=FULL + "PAPERLIB_CACHE"):
            teacher_outputs(store, source)
        (small_disk / "filler").unlink()
    assert store.output_path(outputs_key(source), 0).is_file()
    outputs = teacher_outputs(store, source)
    assert [output.shape for output in outputs] == [store.hr(index).shape for index in range(3)]
    assert all(store.output_path(outputs_key(source), index).is_file() for index in range(3))


def test_the_whole_sequence(small_disk, tmp_path, capfd, monkeypatch):
    path = write_notebook(tmp_path / "notebooks", "01_one", "print('x' * 50_000)")
    monkeypatch.setattr(reproduce.notebooks, "find_notebooks", lambda _: [path])
    for left in (0, 8192, 40_000):
        out = small_disk / f"out{left}"
        open_run("smoke", out)
        fill(small_disk, left)
        assert main(["reproduce", "--profile", "smoke", "--until", "01", "--out", str(out)]) in (1, 2)
        said = capfd.readouterr().err
        assert "No space left on device. Free some space" in said
        assert len(said.splitlines()) <= 3
        (small_disk / "filler").unlink()


def test_a_lock_that_cannot_be_written(small_disk):
    (small_disk / "lock").touch()
    fill(small_disk)
    with pytest.raises(UserError, match=FULL + "PAPERLIB_CACHE"), file_lock(small_disk / "lock", "PAPERLIB_CACHE"):
        pass
