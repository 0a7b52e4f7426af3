"""The pixel store against damage, full disks, killed and rival processes: noticed, named, put right."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from paperlib.data import pixel_store
from paperlib.data.flat_images import FlatImages
from paperlib.data.pixel_store import open_store, read_index
from paperlib.errors import UserError
from paperlib.files import building_folder
from paperlib.settings import DataSettings


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder of three photographs, and a cache of its own."""
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, (top, size) in {"a": (0, (90, 120)), "b": (100, (63, 66)), "c": (200, (20, 150))}.items():
        Image.fromarray(astronaut()[top : top + size[0], : size[1]]).save(folder / f"{name}.png")
    return folder


def folders(path, **more) -> DataSettings:
    return DataSettings(source="folders", train=(str(path),), valid=(str(path),), **more)


def spoil(path, place: int, count: int = 500) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(count))


@pytest.mark.parametrize("part", ["hr", "lr"])
def test_damaged_pixels_of_the_same_size_are_named_and_decoded_again(photographs, capsys, part):
    store = open_store(folders(photographs))
    wanted = [getattr(store, part)(index).copy() for index in range(3)]
    path = store.folder / f"{part}.u8"
    before = path.read_bytes()
    spoil(path, sum(image.size for image in wanted[:1]) + 7)
    again = open_store(folders(photographs))
    assert np.array_equal(getattr(again, part)(0), wanted[0])
    assert capsys.readouterr().out == ""
    assert np.array_equal(getattr(again, part)(1), wanted[1])
    assert "photographs/b is damaged" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_damage_without_a_source_is_an_error(photographs):
    store = open_store(folders(photographs))
    spoil(store.folder / "hr.u8", 0)
    with pytest.raises(UserError, match=r"image 0 of .* is damaged"):
        pixel_store.PixelStore(store.folder).hr(0)


def test_damage_in_a_read_only_cache_is_put_right_in_memory(photographs, monkeypatch):
    store = open_store(folders(photographs))
    wanted = store.hr(0).copy()
    spoil(store.folder / "hr.u8", 0)
    opened = type(store.folder).open

    def refuse(path, mode="r", *more, **options):
        if mode == "r+b":
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, *more, **options)

    monkeypatch.setattr(type(store.folder), "open", refuse)
    again = open_store(folders(photographs))
    assert np.array_equal(again.hr(0), wanted)
    assert np.array_equal(again.hr(0), wanted)


@pytest.mark.parametrize("harm", ["index", "cut", "old"])
def test_a_store_that_is_not_whole_or_has_no_hashes_is_decoded_again_and_keeps_teacher_outputs(photographs, harm):
    store = open_store(folders(photographs))
    wanted = store.hr(2).copy()
    store.teacher_outputs_path("t").write_bytes(b"outputs")
    index = store.folder / "index.json"
    if harm == "index":
        index.write_text("[[[[")
    elif harm == "old":
        index.write_text(json.dumps({key: value for key, value in read_index(store.folder).items() if key != "sha256"}))
    else:
        os.truncate(store.folder / "hr.u8", 1000)
    again = open_store(folders(photographs))
    assert np.array_equal(again.hr(2), wanted)
    assert again.teacher_outputs_path("t").read_bytes() == b"outputs"
    assert [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]


def test_an_unreadable_photograph_is_left_out_named_and_changes_the_key(photographs):
    whole = open_store(folders(photographs))
    (photographs / "b.png").write_bytes((photographs / "b.png").read_bytes()[:900])
    store = open_store(folders(photographs))
    assert store.names == ["photographs/a", "photographs/c"]
    assert list(store.left_out) == ["photographs/b"]
    assert "b.png" in store.left_out["photographs/b"]
    assert read_index(store.folder)["key"] != store.key != whole.key
    spoil(store.folder / "hr.u8", store.hr(0).size)
    assert np.array_equal(open_store(folders(photographs)).hr(1), whole.hr(2))
    for name in "ac":
        (photographs / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png.*b\.png.*c\.png"):
        open_store(folders(photographs))


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_builds_is_not(photographs, tmp_path):
    script = ("import sys, time; from pathlib import Path; from paperlib.files import building_folder\n"
              "with building_folder(Path(sys.argv[1])) as folder:\n"
              "    (folder / 'hr.u8').write_bytes(bytes(1000)); print('building', flush=True); time.sleep(60)")
    target = tmp_path / "cache" / "pixels" / "0123456789abcdef"
    with subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (left,) = target.parent.glob(".paperlib-*")
        open_store(folders(photographs))
        assert (left / "hr.u8").is_file()
        process.send_signal(signal.SIGKILL)
    open_store(folders(photographs, max_train=2))
    assert not left.exists()
    with building_folder(target) as folder:
        (folder / "x").touch()
    assert [path.name for path in target.iterdir()] == ["x"]


def test_a_full_disk_is_an_error_and_no_signal(small_disk, monkeypatch, photographs):
    with pytest.raises(OSError, match="No space left"):
        FlatImages(small_disk / "x.part", [(2000, 2000)], mode="r+")
    assert list(small_disk.iterdir()) == []
    images = FlatImages(small_disk / "x.part", [(500, 1000)], mode="r+")
    (small_disk / "fill").write_bytes(bytes(2_000_000))
    images[0][:] = 7
    images.pixels.flush()
    monkeypatch.setenv("PAPERLIB_CACHE", str(small_disk / "cache"))
    monkeypatch.setattr(pixel_store, "_check_room", lambda *_: None)
    for number in range(20):
        Image.fromarray(astronaut()[:300, :300]).save(photographs / f"d{number}.png")
    with pytest.raises(UserError, match=r"No space left.*Free some space.*PAPERLIB_CACHE"):
        open_store(folders(photographs))
