"""Photographs, pairs, the pixel store against damage and full disks, patches as a function of seed and step."""

import json
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, coffee

from paperlib.cli import main
from paperlib.data import pixel_store
from paperlib.data.dataset import COLOURS, TrainSet, calibration, open_data
from paperlib.data.images import find_images, free_memory, read_rgb
from paperlib.data.photographs import make_pair, read_pairs, read_source
from paperlib.data.pixel_store import open_store, read_pixels, write_pixels
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import (
    named_folder,
    split_sources,
    status,
    validation_pairs,
)
from paperlib.environment import root
from paperlib.errors import UserError
from paperlib.profiles import load_settings
from paperlib.settings import DataSettings


def folders(path, **more) -> DataSettings:
    return DataSettings(source="folders", train=(str(path),), valid=(str(path),), **more)


def test_pairs_are_cropped_and_downscaled():
    hr = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    pair = make_pair("x", hr)
    assert pair.hr.shape == (18, 30, 3)
    assert np.array_equal(pair.lr, bicubic_downscale(hr[:18, :30]))
    with pytest.raises(UserError, match="at least 3×3"):
        make_pair("tiny", hr[:2, :2])
    with pytest.raises(UserError, match="a third of HR is 10×6"):
        make_pair("x", hr, np.zeros((6, 9, 3), np.uint8))


def test_validation_crops_are_central_and_keep_their_own_lr(photographs):
    pairs = validation_pairs(folders(photographs, valid_crop=60, max_valid=2))
    assert [pair.name for pair in pairs] == ["photographs/a", "photographs/b"]
    whole = read_rgb(photographs / "a.png")
    assert np.array_equal(pairs[0].hr, whole[15:75, 30:90])
    hr = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    pair = make_pair("x", hr, hr[:6, :10], crop=16)
    assert np.array_equal(pair.hr, hr[:15, 6:21])
    assert np.array_equal(pair.lr, hr[:5, 2:7])


def test_pairs_match_by_the_fields_names(tmp_path):
    for folder, names in (("HR", ("0801", "baby", "man_HR")), ("LR", ("0801x3", "baby", "man_LRBI_x3"))):
        (tmp_path / folder).mkdir()
        side = 9 if folder == "HR" else 3
        for name in names:
            Image.new("RGB", (side, side)).save(tmp_path / folder / f"{name}.png")
    assert [source.lr.stem for source in read_pairs(tmp_path / "HR", tmp_path / "LR").sources] == [
        "0801x3", "baby", "man_LRBI_x3"]
    (tmp_path / "LR" / "baby.png").unlink()
    with pytest.raises(UserError, match=r"baby of .* has no LR image"):
        read_pairs(tmp_path / "HR", tmp_path / "LR")


def test_missing_and_empty_folders_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    with pytest.raises(UserError, match="PAPERLIB_DATA is unset"):
        named_folder("bsds400")
    with pytest.raises(UserError, match="no image folder"):
        named_folder(str(tmp_path / "absent"))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    with pytest.raises(UserError, match="Run `paperlib data fetch cid22`, correct the data settings"):
        named_folder("cid22")
    monkeypatch.delenv("PAPERLIB_DATA")
    with pytest.raises(UserError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(UserError, match=r"data\.train names none"):
        split_sources(DataSettings(source="folders"), "train")


@pytest.mark.parametrize("permute", [False, True])
def test_patches_are_aligned_with_hr_and_teacher(photographs, permute):
    store = open_store(folders(photographs))
    for index in range(3):
        write_pixels(store.output_path("t", index), 255 - store.hr(index))
    patches = TrainSet(store, folders(photographs), 1, "stage1", 12, permute_colours=permute)
    plain = TrainSet(store, folders(photographs), 1, "stage1", 12)
    turns, colours = set(), set()
    for step in range(20):
        batch = patches.batch(step, 8, teacher="t")
        assert torch.equal(batch.teacher, 255 - batch.hr)
        assert [sample[:4] for sample in batch.samples] == [sample[:4] for sample in plain.batch(step, 8).samples]
        for place, (photograph, top, left, turn, order, _) in enumerate(batch.samples):
            lr = store.lr(photograph)[top : top + 12, left : left + 12]
            hr = store.hr(photograph)[3 * top : 3 * top + 36, 3 * left : 3 * left + 36]
            for got, wanted in ((batch.lr[place], lr), (batch.hr[place], hr)):
                wanted = np.rot90(wanted[:, ::-1] if turn >= 4 else wanted, turn % 4)[..., COLOURS[order]]
                assert np.array_equal(got.permute(1, 2, 0).numpy(), wanted)
            turns.add(turn)
            colours.add(order)
    assert turns == set(range(8))
    assert colours == (set(range(6)) if permute else {0})


def test_patches_depend_on_seed_name_and_step_alone(photographs):
    store, settings = open_store(folders(photographs)), folders(photographs)
    one, two = (TrainSet(store, settings, 1, "stage1", 12) for _ in range(2))
    one.batch(0, 4)
    assert torch.equal(one.batch(7, 4).lr, two.batch(7, 4).lr)
    for seed, name in ((2, "stage1"), (1, "stage2")):
        assert TrainSet(store, settings, seed, name, 12).batch(7, 4).samples != one.batch(7, 4).samples
    halves = [one.batch(7, 4, rank=rank, world=2).samples for rank in range(2)]
    assert halves[0] + halves[1] == one.batch(7, 4).samples
    with pytest.raises(UserError, match="cannot be shared"):
        one.batch(0, 5, world=2)


def test_sampling_by_image_shows_each_once_a_pass_and_by_area_in_proportion(photographs):
    store = open_store(folders(photographs))
    by_image = TrainSet(store, folders(photographs), 1, "s", 12)
    passes = [by_image.sample(index)[0] for index in range(40)]  # c is 6 LR pixels high
    assert all(sorted(passes[start : start + 2]) == [0, 1] for start in range(0, 40, 2))
    by_area = TrainSet(store, folders(photographs, sampling="area"), 1, "s", 12)
    share = np.mean([by_area.sample(index)[0] == 0 for index in range(2000)])
    assert share == pytest.approx(1200 / (1200 + 21 * 22), abs=0.04)
    with pytest.raises(UserError, match="largest patch possible here is 30"):
        TrainSet(store, folders(photographs), 1, "s", 31)


def test_status_names_every_folder_of_a_split(photographs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (photographs / "a.png").rename(other / "a.png")
    train, valid = status(DataSettings(source="folders", train=(str(photographs), str(other)), valid=(str(other),)))
    assert train == {"split": "train", "state": "3 photographs", "where": f"{photographs}, {other}"}
    assert valid["where"] == str(other)


def test_every_split_has_a_hash_of_its_pixels(photographs):
    data = open_data(folders(photographs))
    data.tests = {"Set5": read_pairs(photographs)}
    keys = data.keys()
    assert list(keys) == ["training pixels", "validation pixels", "test pixels: Set5"]
    assert list(keys.values())[:2] == [data.store.key, data.valid_key]
    assert {len(key) for key in keys.values()} == {16}
    pixels = read_rgb(photographs / "b.png").copy()
    pixels[30, 30, 0] ^= 1
    Image.fromarray(pixels).save(photographs / "b.png")
    assert open_data(folders(photographs)).valid_key != data.valid_key


def test_calibration_takes_photographs_from_the_whole_list(photographs):
    store = open_store(folders(photographs))
    data = open_data(folders(photographs))
    for count, wanted in ((1, [0]), (2, [0, 2]), (8, [0, 1, 2])):
        found = calibration(data, load_settings("smoke", {"quant.calibration_images": count}))
        assert all(np.array_equal(lr, store.lr(index)) for lr, index in zip(found, wanted, strict=True))


def test_unpaired_pictures_and_equal_stems(tmp_path, capsys):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for folder, step, names in ((hr, 1, ["a.png", "a.bmp", "b_HR.png", "c.png"]),
                                (lr, 3, ["a.png", "a.bmp", "b_LR.png", "._c.png"])):
        folder.mkdir()
        for name in names:
            top = 40 * name.endswith("bmp")
            Image.fromarray(np.ascontiguousarray(coffee()[top:top + 60:step, :60:step])).save(folder / name)
    scores = tmp_path / "s.json"
    assert main(["evaluate", "bicubic", "--hr", str(hr), "--lr", str(lr), "--json", str(scores)]) == 1
    assert f"no file at {lr / 'c.png'}" in capsys.readouterr().err
    images = json.loads(scores.read_text(encoding="utf-8"))["images"]
    assert [image["name"] for image in images] == ["a.bmp", "a.png", "b_HR"]
    assert images[0]["psnr_rgb"] != images[1]["psnr_rgb"]
    with pytest.raises(UserError, match="has no LR image"):
        read_pairs(hr, lr)


def test_pixels_come_back_and_damaged_ones_do_not(tmp_path, capsys):
    path, pixels = tmp_path / "folder" / "a.npy", astronaut()[:20, :30]
    write_pixels(path, pixels)
    assert np.array_equal(read_pixels(path), pixels)
    assert read_pixels(tmp_path / "none.npy") is None
    assert capsys.readouterr().out == ""
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:500] + b"x" + whole[501:], bytes(32) + whole[32:]):
        path.write_bytes(content)
        assert read_pixels(path) is None
        assert f"{path} is damaged" in capsys.readouterr().out


@pytest.fixture
def decoded(monkeypatch):
    """Names of what is decoded."""
    names = []
    monkeypatch.setattr(pixel_store, "read_source",
                        lambda source, crop: names.append(source.name) or read_source(source, crop))
    return names


@pytest.mark.parametrize("part", ["hr", "lr"])
def test_damaged_pixels_are_named_and_decoded_again(photographs, capsys, decoded, part):
    store = open_store(folders(photographs))
    wanted = getattr(store, part)(1).copy()
    path = sorted(store.folder.glob(f"*.{part}.npy"), key=lambda path: path.stat().st_size)[1]
    before = path.read_bytes()
    path.write_bytes(before[:-100] + bytes(100))
    decoded.clear()
    again = open_store(folders(photographs))
    assert len(decoded) == 1
    assert np.array_equal(getattr(again, part)(1), wanted)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert again.key == store.key


def test_a_photograph_is_decoded_once(photographs, decoded):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))
    first = open_store(folders(photographs))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)  # each keeps two files open
    assert sorted(decoded) == ["photographs/a", "photographs/b", "photographs/c"]
    for index, name in enumerate("abc"):
        pair = make_pair(name, read_rgb(photographs / f"{name}.png"))
        assert np.array_equal(first.hr(index), pair.hr)
        assert np.array_equal(first.lr(index), pair.lr)
    assert open_store(folders(photographs)).key == first.key
    Image.fromarray(astronaut()[300:400]).save(photographs / "d.png")
    store = open_store(folders(photographs))
    assert decoded[3:] == ["photographs/d"]
    assert store.key != first.key
    assert np.array_equal(store.hr(0), first.hr(0))
    assert not np.array_equal(open_store(folders(photographs, train_crop=30)).hr(0), first.hr(0))


def test_the_key_is_that_of_the_committed_records(cache):
    record = json.loads((root() / "results/reference/demo/records/01_data.json").read_text(encoding="utf-8"))
    settings = DataSettings(**record["settings"]["data"])
    assert open_store(settings).key == record["inputs"]["training pixels"]


def test_memory_bounds_how_many_are_decoded_at_a_time(photographs, monkeypatch):
    sources = pixel_store.split_sources(folders(photographs), "train")
    largest = 90 * 120 * pixel_store.DECODING
    for photographs_at_once, expected in ((0, 1), (1, 1), (2, 2), (100, 4)):
        monkeypatch.setattr(pixel_store, "free_memory", lambda n=photographs_at_once: n * largest)
        monkeypatch.setattr(pixel_store.os, "cpu_count", lambda: 4)
        assert pixel_store._at_once(sources) == expected
    assert free_memory() > 10**8


def test_an_unreadable_photograph_is_left_out_named_and_changes_the_key(photographs):
    whole = open_store(folders(photographs))
    (photographs / "b.png").write_bytes((photographs / "b.png").read_bytes()[:900])
    store = open_store(folders(photographs))
    assert store.names == ["photographs/a", "photographs/c"]
    assert list(store.left_out) == ["photographs/b"]
    assert "b.png" in store.left_out["photographs/b"]
    assert store.key != whole.key
    assert np.array_equal(store.hr(1), whole.hr(2))
    for name in "ac":
        (photographs / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png.*b\.png.*c\.png"):
        open_store(folders(photographs))


def test_a_full_disk_is_an_error(small_disk, monkeypatch, photographs):
    monkeypatch.setenv("PAPERLIB_CACHE", str(small_disk / "cache"))
    for number in range(20):
        Image.fromarray(astronaut()[:300, : 200 + number]).save(photographs / f"d{number}.png")
    with pytest.raises(UserError, match=r"No space left.*PAPERLIB_CACHE"):
        open_store(folders(photographs))
