"""DIV2K, the paper's data (section 4): found, downloaded with pinned hashes, unpacked, checked.

A folder or the zip files that a user already has are as good as a download. Whether photographs are
DIV2K's is said by the files of its validation split: `div2k_valid.csv` has git's blob ids of all.
"""

import csv
import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from paperlib.data.download import download
from paperlib.data.photographs import Source, read_pairs
from paperlib.environment import cache_dir
from paperlib.errors import UserError
from paperlib.files import Progress, building_folder, explained, reading, sha256_file, user_path
from paperlib.settings import SCALE, DataSettings

URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
ARCHIVES = {
    "train": {
        "DIV2K_train_HR": (
            3_530_603_713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"),
        "DIV2K_train_LR_bicubic/X3": (
            427_847_282, "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a")},
    "valid": {
        "DIV2K_valid_HR": (
            448_993_893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"),
        "DIV2K_valid_LR_bicubic/X3": (
            54_513_392, "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3")},
}
"""Split → folders of its HR and LR images → bytes and SHA-256 of the zip file."""


def div2k_folder(settings: DataSettings) -> Path:
    """Where the data set is expected: `data.div2k`, else the cache."""
    folder = user_path(settings.div2k) if settings.div2k else cache_dir() / "div2k"
    if folder.is_file():
        raise UserError(f"data.div2k={folder} is a file. Name the folder that it lies in.")
    return folder


def _images(root: Path, folder: str) -> list[Path]:
    """The PNG files of a folder of the data set under `root`, in the usual layouts."""
    for base in (root, root / "DIV2K", root / folder.split("/")[0]):
        if found := sorted((base / folder).glob("*.png")):
            return found
    return []


def div2k_sources(settings: DataSettings, split: str) -> list[Source]:
    """The photographs of a split with the data set's own LR files, by number."""
    root = div2k_folder(settings)
    hr, lr = (_images(root, folder) for folder in ARCHIVES[split])
    if not hr or not lr:
        raise UserError(f"DIV2K's {split} images are not in {root}. Run `paperlib data prepare "
                        "--profile paper`, or set data.div2k to the folder that holds "
                        "DIV2K_train_HR and its siblings, or their zip files.")
    return read_pairs(hr[0].parent, lr[0].parent).sources


@cache
def validation_ids() -> dict[str, str]:
    """Git's blob id of every validation file: "0801.png" (HR) and "0801x3.png" (LR)."""
    with Path(__file__).with_name("div2k_valid.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {f"{line['image']}.png": line["hr"] for line in lines} | {
        f"{line['image']}x{SCALE}.png": line["lr_x3"] for line in lines}


def blob_id(path: Path) -> str:
    """What `git hash-object` says of a file: the SHA-1 of its length and bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_paper_data(train: Sequence[Source], valid: Sequence[Source]) -> bool:
    """Whether these are DIV2K's splits: 900 photographs by name, the last 100 by their bytes."""
    names = [source.hr.name for source in (*train, *valid)]
    if names != [f"{number:04d}.png" for number in range(1, 901)] or len(valid) != 100:
        return False
    files = [path for source in valid for path in (source.hr, source.lr) if path]
    ids = validation_ids()
    return len(files) == len(ids) and all(blob_id(path) == ids.get(path.name) for path in files)


def validation_at_hand(folder: Path, tell: Callable[[str], None] = print) -> list[Source]:
    """What a folder holds of DIV2K's validation split, in the official layout or as HR/ and
    LR_bicubic/X3/, by number; `hr` or `lr` is None where that file is not at hand. `tell` gets a
    line for each file that is left out, as it has not DIV2K's bytes."""
    found: dict[str, Path] = {}
    lr = f"LR_bicubic/X{SCALE}"
    for part in ("DIV2K_valid_HR", f"DIV2K_valid_{lr}", "HR", lr):
        for path in _images(folder, part):
            expected = validation_ids().get(path.name)
            if expected and path.name not in found:
                if blob_id(path) == expected:
                    found[path.name] = path
                else:
                    tell(f"{path} is not DIV2K's {path.name}; left out")
    pairs = ((name, found.get(f"{name}.png"), found.get(f"{name}x{SCALE}.png"))
             for name in (f"{number:04d}" for number in range(801, 901)))
    return [Source(*pair) for pair in pairs if any(pair[1:])]


def unpack(path: Path, target: Path) -> None:
    """Unpack a zip file's PNG images into a new folder, whole or not at all."""
    if target.exists():  # `building_folder` would put the new one in its place
        raise UserError(f"{target} is there and holds no PNG image. Move it away and try again.")
    place = explained(target, place="PAPERLIB_CACHE or data.div2k")
    with (reading(path, "a zip file of DIV2K"), place, zipfile.ZipFile(path) as file,
          building_folder(target) as building):
        for name in file.namelist():
            if name.endswith(".png"):
                (building / Path(name).name).write_bytes(file.read(name))


def prepare(settings: DataSettings, splits: Sequence[str] = ("train", "valid"),
            progress: Progress | None = None) -> list[str]:
    """Bring DIV2K to where it is expected, unpacked; returns what was done, a line each.

    What is there is kept: unpacked folders, then zip files beside them, then downloads (of the
    host, or a mirror named by PAPERLIB_DIV2K_URL).
    """
    root, done = div2k_folder(settings), []
    host = os.environ.get("PAPERLIB_DIV2K_URL", URL).rstrip("/")
    for split in splits:
        for folder, (size, expected) in ARCHIVES[split].items():
            path = root / f"{folder.replace('/', '_')}.zip"
            if _images(root, folder):
                done.append(f"{folder}: there")
                continue
            if not path.is_file():
                download(f"{host}/{path.name}", path, size, expected, progress,
                         place="PAPERLIB_CACHE or data.div2k")
            elif sha256_file(path) != expected:
                raise UserError(f"{path} has a wrong SHA-256, expected {expected}. Delete it and "
                                "try again.")
            unpack(path, root / folder)
            done.append(f"{folder}: unpacked from {path}")
    return done
