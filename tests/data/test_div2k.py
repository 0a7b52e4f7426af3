"""DIV2K from a local server that breaks off, lies, refuses or cannot continue; and from folders."""

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
from paperlib.data.download import download
from paperlib.data.photographs import Pairs
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import split_sources, status
from paperlib.errors import UserError
from paperlib.settings import DataSettings


def lay_out(root, train, valid) -> DataSettings:
    """Small images by the official names, and settings that name them."""
    random = np.random.default_rng(0)
    for split, numbers in (("train", train), ("valid", valid)):
        hr, lr = root / f"DIV2K_{split}_HR", root / f"DIV2K_{split}_LR_bicubic" / "X3"
        hr.mkdir(parents=True)
        lr.mkdir(parents=True)
        for number in numbers:
            pixels = random.integers(0, 256, (22, 31, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(hr / f"{number:04d}.png")
            Image.fromarray(bicubic_downscale(pixels[:21, :30])).save(lr / f"{number:04d}x3.png")
    return DataSettings(source="div2k", div2k=str(root))


FIRST = "DIV2K_train_HR.zip"


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Zip files by name, of two training and one validation image."""
    root, contents = tmp_path_factory.mktemp("div2k"), {}
    lay_out(root, (1, 2), (801,))
    for folder in [*div2k.ARCHIVES["train"], *div2k.ARCHIVES["valid"]]:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for path in (root / folder).iterdir():
                file.write(path, path.relative_to(root))
        contents[f"{folder.replace('/', '_')}.zip"] = buffer.getvalue()
    return contents


@pytest.fixture(autouse=True)
def small_div2k(contents, monkeypatch):
    """Those files in the place of DIV2K's."""
    files = {name.removesuffix(".zip").replace("_X3", "/X3"): (len(data), sha256(data).hexdigest())
             for name, data in contents.items()}
    monkeypatch.setattr(div2k, "ARCHIVES", {
        split: {folder: file for folder, file in files.items() if split in folder} for split in ("train", "valid")})


@pytest.fixture
def server(contents, monkeypatch):
    monkeypatch.setattr("paperlib.data.download.time.sleep", lambda _: None)
    with host(contents) as httpd:
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setenv("PAPERLIB_DIV2K_URL", httpd.url)
        yield httpd


@pytest.fixture
def get(server, contents, tmp_path):
    """Downloads the first file, with its or another expected hash, and checks its bytes."""
    def get(expected: str = sha256(contents[FIRST]).hexdigest()) -> None:
        download(f"{server.url}/{FIRST}", tmp_path / "a.zip", len(contents[FIRST]), expected)
        assert (tmp_path / "a.zip").read_bytes() == contents[FIRST]
    return get


def test_downloaded_over_a_broken_connection_unpacked_checked_and_read(server, contents, tmp_path):
    settings, seen = DataSettings(source="div2k", div2k=str(tmp_path)), []
    server.behave[""] = break_off
    div2k.prepare(settings, progress=lambda have, size: seen.append((have, size)))
    assert [size for have, size in seen if have == size] == [len(data) for data in contents.values()]
    assert server.asked == [(name, part) for name in contents for part in (None, "bytes=100-")]
    pair = Pairs(split_sources(settings, "train"))[1]
    assert pair.name == "0002"
    assert np.array_equal(bicubic_downscale(pair.hr), pair.lr)
    server.asked.clear()
    assert all(line.endswith("there") for line in div2k.prepare(settings))
    assert server.asked == []
    assert [line["state"] for line in status(settings)] == ["2 photographs", "1 photographs"]


PAGE = b"<html>sign in</html>"


@pytest.mark.parametrize("behave", [
    answer(200, PAGE, Content_Length=str(len(PAGE))), answer(200, PAGE),
    answer(206, PAGE, Content_Range="bytes 0-19/20"), answer(206, PAGE)])
def test_an_answer_that_is_another_file_is_never_kept(server, contents, get, tmp_path, behave):
    part, whole = tmp_path / "a.zip.part", contents[FIRST]
    part.write_bytes(whole[:50])
    server.behave[""] = behave
    with pytest.raises(UserError, match="cannot download"):
        get()
    assert not part.exists() or part.read_bytes() == whole[:50]
    server.behave.clear()
    get()
    part.write_bytes(b"z" * 50)
    server.behave[""] = answer(200, whole)  # it cannot continue
    get()


def test_wrong_bytes_are_deleted_and_told(get, tmp_path):
    with pytest.raises(UserError, match=r"cannot download http.* to .*a\.zip: .*wrong bytes.*wget -c .*a\.zip"):
        get("0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_users_folders_and_zips_are_as_good(contents, tmp_path):
    place = tmp_path / "other" / "DIV2K"
    place.mkdir(parents=True)
    for name, data in contents.items():
        (place / name).write_bytes(data)
    div2k.prepare(DataSettings(source="div2k", div2k=str(place)))
    settings = DataSettings(source="div2k", div2k=str(place.parent))
    assert len(div2k.div2k_sources(settings, "train")) == 2


def test_missing_and_damaged_data_are_told(cache):
    settings = DataSettings(source="div2k")
    with pytest.raises(UserError, match="paperlib data prepare"):
        split_sources(settings, "train")
    assert [line["state"] for line in status(settings)] == ["missing", "missing"]
    (cache / "div2k").mkdir(parents=True)
    (cache / "div2k" / FIRST).write_bytes(b"damaged")
    with pytest.raises(UserError, match="wrong SHA-256"):
        div2k.prepare(settings)


def test_a_host_that_sends_more_is_cut_off_at_the_known_size(server, contents, get, tmp_path):
    server.behave[""] = answer(200, contents[FIRST] + bytes(1 << 20))
    with pytest.raises(UserError, match=f"gave more than the {len(contents[FIRST])} bytes"):
        get()
    assert list(tmp_path.iterdir()) == []


def test_a_nonsense_address_a_file_and_an_unknown_home_are_told(tmp_path):
    (tmp_path / "file").touch()
    for place, words in ((str(tmp_path / "file"), "is a file"), ("~nosuchuser/x", "home directory"),
                         ("x" * 300, "shorter name")):
        with pytest.raises(UserError, match=words):
            div2k.div2k_sources(DataSettings(source="div2k", div2k=place), "train")
    for address in ("nonsense", "http://[::1", "http://a b/"):
        with pytest.raises(UserError, match=r"is no address.*PAPERLIB_DIV2K_URL"):
            download(f"{address}/x.zip", tmp_path / "x.zip", 10, "0" * 64)


def test_unpacking_takes_nobodys_folder_away(contents, tmp_path):
    path, target = tmp_path / "a.zip", tmp_path / "DIV2K_train_HR"
    path.write_bytes(contents[FIRST])
    (tmp_path / ".backup.2024").mkdir()
    target.mkdir()
    (target / "my own.txt").touch()
    with pytest.raises(UserError, match="Move it away"):
        div2k.unpack(path, target)
    target.rename(tmp_path / "mine")
    div2k.unpack(path, target)
    assert {path.name for path in target.iterdir()} == {"0001.png", "0002.png"}
    assert (tmp_path / ".backup.2024").is_dir()
    path.write_bytes(b"no zip file")
    with pytest.raises(UserError, match=r"a\.zip is not a zip file"):
        div2k.unpack(path, tmp_path / "elsewhere")


def test_div2k_is_800_names_and_the_bytes_of_its_validation_files(tmp_path, monkeypatch):
    settings = lay_out(tmp_path, range(1, 801), range(801, 901))
    train, valid = (split_sources(settings, split) for split in ("train", "valid"))
    assert not div2k.is_paper_data(train, valid)  # names alone
    monkeypatch.setattr(div2k, "blob_id", lambda path: div2k.validation_ids()[path.name])
    assert div2k.is_paper_data(train, valid)
    assert not div2k.is_paper_data(train[:-1], valid)
    assert not div2k.is_paper_data(valid, valid)
    assert not div2k.is_paper_data(train, [replace(valid[0], lr=None), *valid[1:]])


def test_a_few_photographs_are_not_the_papers_data_and_it_is_said(tmp_path, cache, capsys):
    assert not open_data(lay_out(tmp_path / "data", [1, 2], [801])).is_paper_data
    assert "not DIV2K's 800 and 100" in capsys.readouterr().out
    assert not open_data(DataSettings(train=("a",), source="embedded")).is_paper_data


def test_the_command_fetches_the_validation_files_alone(server, contents, tmp_path, capsys):
    assert main(["data", "fetch", "div2k-valid", "--to", str(tmp_path)]) == 0
    assert "DIV2K_valid_HR: unpacked" in capsys.readouterr().out
    assert len(list(tmp_path.glob("DIV2K_*/**/*.png"))) == 2
    assert [path for path, _ in server.asked] == list(contents)[2:]


def test_validation_photographs_at_hand_are_known_by_their_bytes(tmp_path, data_root):
    official = data_root / "div2k_valid"
    if not official.is_dir():
        pytest.skip(f"no photographs of DIV2K at {official}")
    found = div2k.validation_at_hand(official)
    assert [source.name for source in found] == ["0843", "0844", "0868", "0877"]
    assert all(source.hr and source.lr for source in found)
    for folder, name in (("DIV2K_valid_HR", "0844.png"), ("DIV2K_valid_LR_bicubic/X3", "0843x3.png")):
        (tmp_path / folder).mkdir(parents=True)
        copy = official / folder.removeprefix("DIV2K_valid_") / name
        (tmp_path / folder / name).write_bytes(copy.read_bytes())
    Image.new("RGB", (30, 30)).save(tmp_path / "DIV2K_valid_HR" / "0843.png")
    told = []
    found = div2k.validation_at_hand(tmp_path, told.append)
    assert [(source.name, bool(source.hr), bool(source.lr)) for source in found] == [
        ("0843", False, True), ("0844", True, False)]
    assert len(told) == 1
    assert "0843.png" in told[0]
    assert div2k.validation_at_hand(tmp_path / "nothing") == []
