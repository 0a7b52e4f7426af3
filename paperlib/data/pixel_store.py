"""Training photographs decoded once into flat files of pixels, shared by all runs (paper section 4's data, made cheap).

A store is a folder in the cache: `hr.u8` and `lr.u8` hold the photographs one after the other, `index.json` says where
each begins. A file of teacher outputs (`teacher-<key>.u8`) has the layout of `hr.u8` and holds a teacher's outputs.
"""

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from paperlib.data.photographs import Source, read_source
from paperlib.data.splits import split_sources
from paperlib.environment import cache_dir
from paperlib.errors import UserError
from paperlib.files import Progress, sha256_file, write_json
from paperlib.settings import SCALE, DataSettings

LAYOUT = 1
"""Changes when what is stored for the same photographs changes."""


class FlatImages(Sequence[np.ndarray]):
    """Images (H, W, 3) uint8 that lie one after the other in a memory-mapped file."""

    def __init__(self, path: Path, shapes: list[tuple[int, int]], mode: str = "r") -> None:
        self.shapes = shapes
        self.offsets = np.cumsum([0] + [3 * height * width for height, width in shapes])
        total = int(self.offsets[-1])
        if mode != "r" and (not path.exists() or path.stat().st_size != total):
            with path.open("wb") as file:
                file.truncate(total)
        self.pixels = np.memmap(path, np.uint8, "r" if mode == "r" else "r+", shape=(total,))

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self.shapes[index]
        return self.pixels[self.offsets[index] : self.offsets[index + 1]].reshape(height, width, 3)


class PixelStore:
    """Decoded training photographs: `hr(i)` uint8 (3h, 3w, 3) and `lr(i)` uint8 (h, w, 3), without copying.

    Raises:
        UserError: the folder's files do not fit its index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text())
        self.key: str = index["key"]
        self.names: list[str] = index["names"]
        self.lr_shapes = [tuple(shape) for shape in index["lr_shapes"]]
        hr_shapes = [(SCALE * height, SCALE * width) for height, width in self.lr_shapes]
        for name, shapes in (("lr.u8", self.lr_shapes), ("hr.u8", hr_shapes)):
            size, wanted = (folder / name).stat().st_size, 3 * sum(height * width for height, width in shapes)
            if size != wanted:
                raise UserError(f"{folder / name} has {size} bytes, not {wanted}. Delete {folder} and try again.")
        self._lr, self._hr = FlatImages(folder / "lr.u8", self.lr_shapes), FlatImages(folder / "hr.u8", hr_shapes)

    def __len__(self) -> int:
        return len(self.names)

    def lr(self, index: int) -> np.ndarray:
        """LR pixels of photograph `index`, uint8 (h, w, 3), read only."""
        return self._lr[index]

    def hr(self, index: int) -> np.ndarray:
        """HR pixels of photograph `index`, uint8 (3h, 3w, 3), read only."""
        return self._hr[index]

    def teacher_outputs_path(self, key: str) -> Path:
        """File of the outputs of the teacher with this key; there only when all of them are."""
        return self.folder / f"teacher-{key}.u8"

    def teacher_outputs(self, key: str) -> FlatImages:
        """Teacher outputs, one uint8 (3h, 3w, 3) for each photograph.

        Raises:
            UserError: they have not been computed.
        """
        path = self.teacher_outputs_path(key)
        if not path.is_file():
            raise UserError(f"no teacher outputs at {path}. Run 03_teacher first, with the same settings.")
        return FlatImages(path, self._hr.shapes)


def _source_hash(source: Source) -> str:
    return sha256_file(source.hr) + (sha256_file(source.lr) if source.lr else "")


def open_store(settings: DataSettings, progress: Progress | None = None) -> PixelStore:
    """The pixel store of the training split; built on first use, in parallel, and renamed into place when complete.

    Raises:
        UserError: too little disk space, or a photograph that cannot be read.
    """
    sources = split_sources(settings, "train")
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_source_hash, sources))
    text = json.dumps([LAYOUT, settings.train_crop, [source.name for source in sources], hashes])
    key = sha256(text.encode()).hexdigest()[:16]
    folder = cache_dir() / "pixels" / key
    if not (folder / "index.json").is_file():
        _build(folder, key, sources, settings.train_crop, progress)
    return PixelStore(folder)


def _build(folder: Path, key: str, sources: list[Source], crop: int, progress: Progress | None) -> None:
    building = folder.with_name(f".{key}.{os.getpid()}")
    try:
        building.mkdir(parents=True, exist_ok=True)
        shapes = _decode(building, sources, crop, progress)
        write_json(building / "index.json",
                   {"key": key, "names": [source.name for source in sources], "lr_shapes": shapes})
        try:
            building.rename(folder)
        except OSError:  # another process was first, or a broken folder is in the way
            if not (folder / "index.json").is_file():
                shutil.rmtree(folder)
                building.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write training pixels to {folder}: {error.strerror}. Free some space or set "
                        "PAPERLIB_CACHE to a folder on a larger disk.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _decode(building: Path, sources: list[Source], crop: int, progress: Progress | None) -> list[tuple[int, int]]:
    """Decode all photographs into hr.u8 and lr.u8, in order; returns the LR shapes."""
    shapes: list[tuple[int, int]] = []
    with (building / "hr.u8").open("wb") as hr_file, (building / "lr.u8").open("wb") as lr_file, \
            ThreadPoolExecutor() as pool:
        window, done = 16, 0  # photographs decoded ahead: bounds memory
        for start in range(0, len(sources), window):
            batch = sources[start : start + window]
            for pair in pool.map(partial(read_source, crop=crop), batch):
                need = (pair.hr.nbytes + pair.lr.nbytes) * (len(sources) - done)
                free = shutil.disk_usage(building).free
                if free < need // 2:
                    raise UserError(f"training pixels need about {need / 1e9:.1f} GB more in {building.parent}, "
                                    f"{free / 1e9:.1f} GB are free. Free some, or set PAPERLIB_CACHE to a larger disk.")
                pair.hr.tofile(hr_file)
                pair.lr.tofile(lr_file)
                shapes.append((int(pair.lr.shape[0]), int(pair.lr.shape[1])))
                done += 1
                if progress:
                    progress(done, len(sources))
    return shapes
