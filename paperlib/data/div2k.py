"""DIV2K, the paper's data (section 4): found, downloaded with pinned hashes, unpacked, checked.

The host is slow and often down, so partial downloads continue where they stopped, and a folder or
the zip files that a user already has are as good. Whether photographs are DIV2K's is said by the
files of its validation split: `div2k_valid.csv` has git's blob ids of all 100, HR and LR ×3.
"""

import csv
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paperlib.data.download import download
from paperlib.data.images import image_size
from paperlib.data.photographs import Source, match_folders
from paperlib.environment import cache_dir
from paperlib.errors import UserError
from paperlib.files import building_folder, explain, sha256_file, user_path
from paperlib.settings import SCALE, DataSettings

URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
COUNTS = {"train": 800, "valid": 100}


@dataclass(frozen=True)
class Archive:
    """One zip file of the data set; it holds the folder `folder` of PNG files."""

    name: str
    bytes: int
    sha256: str
    folder: str
    split: str


ARCHIVES = (
    Archive("DIV2K_train_HR.zip", 3_530_603_713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
            "DIV2K_train_HR", "train"),
    Archive("DIV2K_valid_HR.zip", 448_993_893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
            "DIV2K_valid_HR", "valid"),
    Archive("DIV2K_train_LR_bicubic_X3.zip", 427_847_282,
            "ad5c8e5507e2765823d3c2c5bd0934842efcd487c5370604c224090898b3163a", "DIV2K_train_LR_bicubic/X3", "train"),
    Archive("DIV2K_valid_LR_bicubic_X3.zip", 54_513_392,
            "04b9a2ed3b4a0715d3924d3ae8514830c3328fac8d30512ce716d6f419e052a3", "DIV2K_valid_LR_bicubic/X3", "valid"),
)


VALIDATION = tuple(archive for archive in ARCHIVES if archive.split == "valid")


def base_url() -> str:
    """The host's folder, or a mirror named by PAPERLIB_DIV2K_URL."""
    return os.environ.get("PAPERLIB_DIV2K_URL", URL).rstrip("/")


def div2k_folder(settings: DataSettings) -> Path:
    """Where the data set is expected: `data.div2k`, else the cache."""
    folder = user_path(settings.div2k) if settings.div2k else cache_dir() / "div2k"
    if folder.is_file():
        raise UserError(f"data.div2k={folder} is a file. Name the folder that it lies in.")
    return folder


def find_folder(root: Path, archive: Archive) -> Path | None:
    """An unpacked folder of the data set under `root`, in the usual layouts, or None."""
    parts = Path(archive.folder)
    for base in (root, root / "DIV2K", root / parts.parts[0]):
        if any((base / parts).glob("*.png")):
            return base / parts
    return None


def div2k_sources(settings: DataSettings, split: str, archives: tuple[Archive, ...] = ARCHIVES) -> list[Source]:
    """The photographs of a split with the data set's own LR files, by number."""
    root = div2k_folder(settings)
    folders = {"LR" in archive.folder: find_folder(root, archive) for archive in archives if archive.split == split}
    if None in folders.values():
        raise UserError(f"DIV2K's {split} images are not in {root}. Run `paperlib data prepare --profile paper`, or "
                        "set data.div2k to the folder that holds DIV2K_train_HR and its siblings, or their zip files.")
    return match_folders(folders[False], folders[True])


@cache
def validation_ids() -> dict[str, str]:
    """Git's blob id of every validation file by its name, "0801.png" (HR) and "0801x3.png" (LR)."""
    with Path(__file__).with_name("div2k_valid.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {f"{line['image']}.png": line["hr"] for line in lines} | {
        f"{line['image']}x{SCALE}.png": line["lr_x3"] for line in lines}


def blob_id(path: Path) -> str:
    """What `git hash-object` says of a file: the SHA-1 of its length and bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_paper_data(train: Sequence[Source], valid: Sequence[Source]) -> bool:
    """Whether these are DIV2K's splits, 800 and 100 photographs by name, the second by their bytes.
    """
    for sources, numbers in ((train, range(1, 801)), (valid, range(801, 901))):
        if [source.hr.name for source in sources] != [f"{number:04d}.png" for number in numbers]:
            return False
    files = [path for source in valid for path in (source.hr, source.lr) if path]
    ids = validation_ids()
    return len(files) == len(ids) and all(blob_id(path) == ids.get(path.name) for path in files)


def validation_at_hand(folder: Path, tell: Callable[[str], None] = print) -> list[Source]:
    """What a folder holds of DIV2K's validation split, in the official layout or as HR/ and
    LR_bicubic/X3/; each file is the original, by its blob id.

    Args:
        folder: one that holds `DIV2K_valid_HR`, `DIV2K_valid_LR_bicubic`, or both.
        tell: gets a line for each file that is left out, as it is not DIV2K's.

    Returns:
        By number; `hr` or `lr` is None where that file is not at hand.
    """
    found: dict[str, Path] = {}
    lr = f"LR_bicubic/X{SCALE}"
    for part in ("DIV2K_valid_HR", f"DIV2K_valid_{lr}", "HR", lr):
        for place in (folder / part, folder / "DIV2K" / part, folder / part.split("/")[0] / part):
            for path in sorted(place.glob("*.png")):
                if path.name not in validation_ids() or path.name in found:
                    continue
                if blob_id(path) == validation_ids()[path.name]:
                    found[path.name] = path
                else:
                    tell(f"{path} is not DIV2K's {path.name}; left out")
    pairs = ((name, found.get(f"{name}.png"), found.get(f"{name}x{SCALE}.png"))
             for name in (f"{number:04d}" for number in range(801, 901)))
    return [Source(*pair) for pair in pairs if any(pair[1:])]


def unpack(archive: Archive, path: Path, root: Path) -> Path:
    """Unpack a zip file's PNG images into `root`, whole or not at all; returns their folder."""
    target = root / archive.folder
    if target.exists():  # `building_folder` would put the new one in its place
        raise UserError(f"{target} is there and holds no PNG image. Move it away and try again.")
    try:
        with zipfile.ZipFile(path) as file, building_folder(target) as building:
            names = [name for name in file.namelist() if name.endswith(".png")]
            if not names:
                raise UserError(f"{path} holds no PNG image. Download it again.")
            for name in names:
                with file.open(name) as source, (building / Path(name).name).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and try again.") from error
    except OSError as error:
        raise explain(error, target, place="PAPERLIB_CACHE or data.div2k") from error
    return target


def check_split(settings: DataSettings, split: str, count: int) -> None:
    """Check number and sizes (HR = 3 × LR after cropping) of a split, reading headers only."""
    sources = div2k_sources(settings, split)
    if len(sources) != count:
        raise UserError(f"DIV2K {split} has {len(sources)} images in {sources[0].hr.parent}, not {count}. "
                        "Unpack it again.")
    for source in sources:
        height, width = (side // SCALE for side in image_size(source.hr))
        if image_size(source.lr) != (height, width):
            raise UserError(f"{source.lr} is not {width}×{height}, a third of {source.hr}. "
                            "Unpack both again.")


def prepare(settings: DataSettings, archives: tuple[Archive, ...] = ARCHIVES, counts: dict[str, int] | None = None,
            progress: Callable[[str, int, int], None] | None = None) -> list[str]:
    """Bring DIV2K to where it is expected (unpacked, checked); returns what was done, a line each.

    What is there is kept: unpacked folders, then zip files beside them, then downloads.
    """
    root, done = div2k_folder(settings), []
    for archive in archives:
        if find_folder(root, archive):
            done.append(f"{archive.folder}: there")
            continue
        path = root / archive.name
        if not path.is_file():
            report = (lambda have, size, name=archive.name: progress(name, have, size)) if progress else None
            download(f"{base_url()}/{archive.name}", path, archive.bytes, archive.sha256, report,
                     host="PAPERLIB_DIV2K_URL", place="PAPERLIB_CACHE or data.div2k")
        elif sha256_file(path) != archive.sha256:
            raise UserError(f"{path} has a wrong SHA-256, expected {archive.sha256}. Delete it and try again.")
        unpack(archive, path, root)
        done.append(f"{archive.folder}: unpacked from {path}")
    for split, count in (counts or COUNTS).items():
        if split in {archive.split for archive in archives}:
            check_split(settings, split, count)
    return done
