"""DIV2K from a local server that breaks off, lies, refuses or cannot continue; and from folders a user has."""

import io
import zipfile
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hosts import answer, break_off, host
from PIL import Image

from paperlib.cli import main
from paperlib.data import div2k
from paperlib.data.dataset import open_data
from paperlib.data.div2k import (
    Archive,
    div2k_sources,
    is_paper_data,
    prepare,
    validation_at_hand,
    validation_ids,
)
from paperlib.data.download import download
from paperlib.data.photographs import Pairs
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import split_sources, status
from paperlib.errors import UserError
from paperlib.settings import DataSettings


def zipped(folder: str, images: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, pixels in images.items():
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            file.writestr(f"{folder}/{name}.png", png.getvalue())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset():
    """Two training and one validation image in DIV2K's layout: (archives, contents by file name)."""
    random, contents, archives = np.random.default_rng(0), {}, []
    for split, numbers in (("train", (1, 2)), ("valid", (801,))):
        hr = {f"{number:04d}": random.integers(0, 256, (64, 91, 3), dtype=np.uint8) for number in numbers}
        lr = {f"{name}x3": bicubic_downscale(image[:63, :90]) for name, image in hr.items()}
        for folder, images in ((f"DIV2K_{split}_HR", hr), (f"DIV2K_{split}_LR_bicubic/X3", lr)):
            data, name = zipped(folder, images), f"{folder.replace('/', '_')}.zip"
            contents[name] = data
            archives.append(Archive(name, len(data), sha256(data).hexdigest(),
                                    folder, split))
    return tuple(archives), contents


@pytest.fixture
def server(dataset, monkeypatch):
    monkeypatch.setattr("paperlib.data.download.time.sleep", lambda _: None)
    with host(dataset[1]) as httpd:
        monkeypatch.setenv("PAPERLIB_DIV2K_URL", f"http://127.0.0.1:{httpd.server_port}")
        yield httpd


COUNTS = {"train": 2, "valid": 1}


def test_downloaded_unpacked_checked_and_read(server, dataset, tmp_path):
    settings = DataSettings(source="div2k", div2k=str(tmp_path))
    seen = []
    prepare(settings, dataset[0], COUNTS, lambda name, have, size: seen.append((name, have, size)))
    assert {name for name, have, size in seen if have == size} == {archive.name for archive in dataset[0]}
    pair = Pairs(split_sources(settings, "train"))[1]
    assert pair.name == "0002"
    assert np.array_equal(bicubic_downscale(pair.hr), pair.lr)
    server.asked.clear()
    assert all(line.endswith("there") for line in prepare(settings, dataset[0], COUNTS))
    assert server.asked == []
    assert [line["state"] for line in status(settings)] == ["2 photographs", "1 photographs"]


def test_broken_connection_continues_where_it_stopped(server, dataset, tmp_path):
    server.behave[""] = break_off
    archive = dataset[0][0]
    download(f"{div2k.base_url()}/{archive.name}", tmp_path / "a.zip", archive.bytes, archive.sha256)
    assert (tmp_path / "a.zip").read_bytes() == dataset[1][archive.name]
    assert [asked[1] for asked in server.asked] == [None, "bytes=100-"]


def test_host_that_cannot_continue_starts_over(server, dataset, tmp_path):
    archive = dataset[0][0]
    server.behave[""] = answer(200, dataset[1][archive.name])
    (tmp_path / "a.zip.part").write_bytes(b"z" * 50)
    download(f"{div2k.base_url()}/{archive.name}", tmp_path / "a.zip", archive.bytes, archive.sha256)
    assert (tmp_path / "a.zip").read_bytes() == dataset[1][archive.name]


PAGE = b"<html>sign in</html>"


@pytest.mark.parametrize("behave", [
    answer(200, PAGE, Content_Length=str(len(PAGE))), answer(200, PAGE),
    answer(206, PAGE, Content_Range="bytes 0-19/20"), answer(206, PAGE)])
def test_an_answer_that_is_another_file_is_never_kept(server, dataset, tmp_path, behave):
    archive, part = dataset[0][0], tmp_path / "a.zip.part"
    part.write_bytes(dataset[1][archive.name][:50])
    server.behave[""] = behave
    with pytest.raises(UserError, match="cannot download"):
        download(f"{div2k.base_url()}/{archive.name}", tmp_path / "a.zip", archive.bytes, archive.sha256)
    assert not part.exists() or part.read_bytes() == dataset[1][archive.name][:50]
    server.behave.clear()
    download(f"{div2k.base_url()}/{archive.name}", tmp_path / "a.zip", archive.bytes, archive.sha256)
    assert (tmp_path / "a.zip").read_bytes() == dataset[1][archive.name]


def test_wrong_bytes_are_deleted_and_told(server, dataset, tmp_path):
    archive = dataset[0][0]
    with pytest.raises(UserError, match=r"wrong bytes.*wget -c .*a\.zip"):
        download(f"{div2k.base_url()}/{archive.name}", tmp_path / "a.zip", archive.bytes, "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("url", "words"), [("/absent.zip", "answered 404"), (None, "Connection refused")])
def test_refusals_name_url_bytes_and_destination(server, tmp_path, url, words):
    url = div2k.base_url() + url if url else "http://127.0.0.1:9/x.zip"
    with pytest.raises(UserError, match=rf"cannot download {url} \(123 bytes\) to .*a\.zip: .*{words}.*wget -c"):
        download(url, tmp_path / "a.zip", 123, "0" * 64)


def test_a_users_folders_and_zips_are_as_good(dataset, tmp_path):
    for archive in dataset[0]:
        (tmp_path / "zips" / archive.name).parent.mkdir(exist_ok=True)
        (tmp_path / "zips" / archive.name).write_bytes(dataset[1][archive.name])
    settings = DataSettings(source="div2k", div2k=str(tmp_path / "zips"))
    prepare(settings, dataset[0], COUNTS)
    nested = tmp_path / "other"
    nested.mkdir()
    (tmp_path / "zips").rename(nested / "DIV2K")
    assert len(div2k_sources(DataSettings(source="div2k", div2k=str(nested)), "train", dataset[0])) == 2
    (nested / "DIV2K" / "DIV2K_train_HR" / "0002.png").unlink()
    with pytest.raises(UserError, match="has 1 images"):
        div2k.check_split(DataSettings(source="div2k", div2k=str(nested)), "train", 2)


def test_missing_and_damaged_data_are_told(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path))
    settings = DataSettings(source="div2k")
    with pytest.raises(UserError, match="paperlib data prepare"):
        split_sources(settings, "train")
    assert [line["state"] for line in status(settings)] == ["missing", "missing"]
    (tmp_path / "div2k").mkdir()
    (tmp_path / "div2k" / dataset[0][0].name).write_bytes(b"damaged")
    with pytest.raises(UserError, match="wrong SHA-256"):
        prepare(settings, dataset[0], COUNTS)


def test_a_full_disk_is_told_before_downloading(server, tmp_path, monkeypatch):
    monkeypatch.setattr(div2k.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match="needs 500 bytes"):
        download(f"{div2k.base_url()}/x.zip", tmp_path / "a.zip", 500, "0" * 64)
    assert server.asked == []


def test_a_host_that_sends_more_is_cut_off_at_the_known_size(server, dataset, tmp_path):
    sent = []

    def endless(handler, data):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)
        except OSError:
            pass
        return True

    server.behave[""] = endless
    archive = dataset[0][0]
    with pytest.raises(UserError, match=f"gave more than the {archive.bytes} bytes"):
        download(f"{div2k.base_url()}/{archive.name}", tmp_path / "a.zip", archive.bytes, archive.sha256)
    assert list(tmp_path.iterdir()) == []
    assert len(sent) < 100


def test_a_nonsense_address_a_file_and_an_unknown_home_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place, words in ((str(tmp_path / "file"), "is a file"), ("~nosuchuser/x", "no such user"),
                         ("x" * 300, "shorter name")):
        with pytest.raises(UserError, match=words):
            div2k_sources(DataSettings(source="div2k", div2k=place), "train")
    for address in ("nonsense", "http://[::1", "http://a b/"):
        monkeypatch.setenv("PAPERLIB_DIV2K_URL", address)
        with pytest.raises(UserError, match="is no address"):
            download(f"{div2k.base_url()}/x.zip", tmp_path / "x.zip", 10, "0" * 64)


def test_unpacking_takes_nobodys_folder_away(dataset, tmp_path):
    archive = dataset[0][0]
    (tmp_path / "a.zip").write_bytes(dataset[1][archive.name])
    (tmp_path / ".backup.2024").mkdir()
    (tmp_path / archive.folder).mkdir()
    (tmp_path / archive.folder / "my own.txt").touch()
    with pytest.raises(UserError, match="Move it away"):
        div2k.unpack(archive, tmp_path / "a.zip", tmp_path)
    (tmp_path / archive.folder).rename(tmp_path / "mine")
    div2k.unpack(archive, tmp_path / "a.zip", tmp_path)
    names = {path.name for path in (tmp_path / archive.folder).iterdir()}
    assert names == {"0001.png", "0002.png"}
    assert (tmp_path / ".backup.2024").is_dir()
    (tmp_path / "b.zip").write_bytes(b"no zip file")
    with pytest.raises(UserError, match="is damaged"):
        div2k.unpack(archive, tmp_path / "b.zip", tmp_path / "elsewhere")


def named_like_div2k(root, train, valid):
    """Empty files by the official names, and settings that name them."""
    for split, numbers in (("train", train), ("valid", valid)):
        for folder, end in ((f"DIV2K_{split}_HR", ""), (f"DIV2K_{split}_LR_bicubic/X3", "x3")):
            (root / folder).mkdir(parents=True)
            for number in numbers:
                (root / folder / f"{number:04d}{end}.png").touch()
    return DataSettings(source="div2k", div2k=str(root))


def test_div2k_is_800_names_and_the_bytes_of_its_validation_files(tmp_path, monkeypatch):
    settings = named_like_div2k(tmp_path, range(1, 801), range(801, 901))
    train, valid = (split_sources(settings, split) for split in ("train", "valid"))
    assert not is_paper_data(train, valid)  # names alone
    monkeypatch.setattr(div2k, "blob_id", lambda path: validation_ids()[path.name])
    assert is_paper_data(train, valid)
    assert not is_paper_data(train[:-1], valid)
    assert not is_paper_data(valid, valid)
    assert not is_paper_data(train, [replace(valid[0], lr=None), *valid[1:]])


def test_a_few_photographs_are_not_the_papers_data_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PAPERLIB_CACHE", str(tmp_path / "cache"))
    settings = named_like_div2k(tmp_path / "data", [1, 2], [801])
    random = np.random.default_rng(0)
    for path in sorted((tmp_path / "data").glob("DIV2K_*_HR/*.png")):
        hr = random.integers(0, 256, (63, 90, 3), dtype=np.uint8)
        lr = path.parents[1] / path.parent.name.replace("HR", "LR_bicubic/X3") / f"{path.stem}x3.png"
        Image.fromarray(hr).save(path)
        Image.fromarray(bicubic_downscale(hr)).save(lr)
    assert not open_data(settings).is_paper_data
    assert "not DIV2K's 800 and 100" in capsys.readouterr().out
    assert not open_data(DataSettings(train=("a",), source="embedded")).is_paper_data


def test_the_command_fetches_the_validation_files_alone(server, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(div2k, "VALIDATION", dataset[0][2:])
    monkeypatch.setattr(div2k, "COUNTS", COUNTS)
    assert main(["data", "fetch", "div2k-valid", "--to", str(tmp_path)]) == 0
    assert "DIV2K_valid_HR: unpacked" in capsys.readouterr().out
    assert [len(list((tmp_path / archive.folder).iterdir())) for archive in dataset[0][2:]] == [1, 1]
    assert [path for path, _ in server.asked] == [f"{archive.name}" for archive in dataset[0][2:]]


def test_validation_photographs_at_hand_are_known_by_their_bytes(tmp_path, data_root):
    official = data_root / "div2k_valid"
    if not official.is_dir():
        pytest.skip(f"no photographs of DIV2K at {official}")
    found = validation_at_hand(official)
    assert [source.name for source in found] == ["0843", "0844", "0868", "0877"]
    assert all(source.hr and source.lr for source in found)
    for folder, name in (("DIV2K_valid_HR", "0844.png"), ("DIV2K_valid_LR_bicubic/X3", "0843x3.png")):
        (tmp_path / folder).mkdir(parents=True)
        copy = official / folder.removeprefix("DIV2K_valid_") / name
        (tmp_path / folder / name).write_bytes(copy.read_bytes())
    Image.new("RGB", (30, 30)).save(tmp_path / "DIV2K_valid_HR" / "0843.png")
    told = []
    found = validation_at_hand(tmp_path, told.append)
    assert [(source.name, bool(source.hr), bool(source.lr)) for source in found] == [
        ("0843", False, True), ("0844", True, False)]
    assert len(told) == 1
    assert "0843.png" in told[0]
    assert validation_at_hand(tmp_path / "nothing") == []
