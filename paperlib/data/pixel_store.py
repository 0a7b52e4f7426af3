"""Training photographs decoded once into flat files of pixels, shared by all runs (paper section 4's data, made cheap).

A store is a folder in the cache: `hr.u8` and `lr.u8` hold the photographs one after the other, `index.json` says where
each begins and what its SHA-256 is. A file of teacher outputs (`teacher-<key>.u8`, its hashes in `.json` beside it) has
the layout of `hr.u8`. Whatever is read from them is hashed when it is opened for the first time in a process, at about
2 GB a second (measured; 0.4 s for the benchmark profile's 0.8 GB), spread over the first pass.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from paperlib.data.flat_images import FlatImages
from paperlib.data.photographs import Pair, Source, read_source
from paperlib.data.splits import split_sources
from paperlib.environment import cache_dir
from paperlib.errors import UserError
from paperlib.files import Progress, building_folder, explain, sha256_file, write_json
from paperlib.settings import SCALE, DataSettings

LAYOUT = 1
"""Changes when what is stored for the same photographs changes."""


class PixelStore:
    """Decoded training photographs: `hr(i)` uint8 (3h, 3w, 3) and `lr(i)` uint8 (h, w, 3), without copying.

    Args:
        folder: holds `index.json`, `hr.u8` and `lr.u8`.
        decode: photograph `i` from its source; puts damaged pixels right.

    Raises:
        UserError: the folder's files do not fit its index. Also `hr` and `lr`, for pixels that are not those of the
            index and cannot be had from the source.
    """

    def __init__(self, folder: Path, decode: Callable[[int], Pair] | None = None) -> None:
        self.folder = folder
        index = read_index(folder)
        if index is None:
            raise UserError(f"{folder} is no whole store of training pixels. Delete it and try again.")
        self.names: list[str] = index["names"]
        self.left_out: dict[str, str] = index["left_out"]
        """Photographs that could not be read, and why; the key is another one without them."""
        self.key: str = index["key"] if not self.left_out else sha256(
            json.dumps([index["key"], sorted(self.left_out)]).encode()).hexdigest()[:16]
        self.lr_shapes = [(height, width) for height, width in index["lr_shapes"]]
        self._shapes = [(SCALE * height, SCALE * width) for height, width in self.lr_shapes]
        self._teacher_outputs: dict[str, FlatImages] = {}
        if wrong := wrong_size(folder, self.lr_shapes):
            raise UserError(f"{wrong}. Delete {folder} and try again.")
        mend = {part: partial(self._mend, part, decode) if decode else None for part in ("lr", "hr")}
        self._lr = FlatImages(folder / "lr.u8", self.lr_shapes, hashes=index["sha256"]["lr"], mend=mend["lr"])
        self._hr = FlatImages(folder / "hr.u8", self._shapes, hashes=index["sha256"]["hr"], mend=mend["hr"])

    def _mend(self, part: str, decode: Callable[[int], Pair], index: int) -> np.ndarray:
        print(f"{self.names[index]} is damaged in {self.folder / part}.u8; decoded again from its source", flush=True)
        return getattr(decode(index), part)

    def __len__(self) -> int:
        return len(self.names)

    def lr(self, index: int) -> np.ndarray:
        """LR pixels of photograph `index`, uint8 (h, w, 3), read only."""
        return self._lr[index]

    def hr(self, index: int) -> np.ndarray:
        """HR pixels of photograph `index`, uint8 (3h, 3w, 3), read only."""
        return self._hr[index]

    def hr_shape(self, index: int) -> tuple[int, int, int]:
        """(3h, 3w, 3) of photograph `index`, without reading it."""
        return (*self._shapes[index], 3)

    def lr_identity(self, index: int) -> tuple[str, tuple[int, int]]:
        """SHA-256 and shape (h, w) of the LR pixels of photograph `index`: what a teacher's output depends on."""
        return self._lr.hashes[index], self.lr_shapes[index]

    def teacher_outputs_path(self, key: str) -> Path:
        """File of the outputs of the teacher with this key; there only when all of them are."""
        return self.folder / f"teacher-{key}.u8"

    def teacher_outputs(self, key: str, reopen: bool = False) -> FlatImages:
        """Teacher outputs, one uint8 (3h, 3w, 3) for each photograph, checked when read for the first time.

        Args:
            reopen: open, and so check, them again.

        Raises:
            UserError: they have not been computed, or (when one is read) it is damaged.
        """
        path = self.teacher_outputs_path(key)
        if reopen or key not in self._teacher_outputs:
            wanted = 3 * sum(height * width for height, width in self._shapes)
            if not path.is_file():
                raise UserError(f"no teacher outputs at {path}. Run 03_teacher first, with the same settings.")
            if (size := path.stat().st_size) != wanted:
                raise UserError(f"{path} has {size} bytes, not {wanted}. Delete it and run 03_teacher again.")
            self._teacher_outputs[key] = FlatImages(path, self._shapes, hashes=read_hashes(path, len(self)),
                                                    mend=partial(self._refuse, path))
        return self._teacher_outputs[key]

    def _refuse(self, path: Path, index: int) -> np.ndarray:
        raise UserError(f"the teacher's output for {self.names[index]} is damaged in {path}. Run 03_teacher again: it "
                        "computes that one anew.")


def wrong_size(folder: Path, lr_shapes: Sequence[tuple[int, int]]) -> str:
    """Which pixel file of a store has not the size that its shapes ask for; empty where both have."""
    pixels = 3 * sum(height * width for height, width in lr_shapes)
    for name, wanted in (("lr.u8", pixels), ("hr.u8", SCALE**2 * pixels)):
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size != wanted:
            return f"{folder / name} has {size} bytes, not {wanted}"
    return ""


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a store, or None where there is none, or one without hashes, as older versions wrote it."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        count = {len(index["names"]), len(index["lr_shapes"]), *(len(index["sha256"][part]) for part in ("lr", "hr"))}
        sound = count == {len(index["names"])} and all(len(shape) == 2 for shape in index["lr_shapes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return index if sound and isinstance(index.get("key"), str) and isinstance(index.get("left_out"), dict) else None


def read_hashes(path: Path, count: int) -> list[str] | None:
    """SHA-256 of each image of a file of teacher outputs, from the `.json` beside it; None where that is missing."""
    try:
        hashes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return hashes if isinstance(hashes, list) and len(hashes) == count else None


def _source_hash(source: Source) -> str:
    return sha256_file(source.hr) + (sha256_file(source.lr) if source.lr else "")


def open_store(settings: DataSettings, progress: Progress | None = None) -> PixelStore:
    """The pixel store of the training split; built on first use, in parallel, and renamed into place when complete.

    A photograph of the user's own folders that cannot be read is left out and named (`PixelStore.left_out`).

    Raises:
        UserError: too little disk space, or a photograph of a published set that cannot be read.
    """
    sources = split_sources(settings, "train")
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_source_hash, sources))
    text = json.dumps([LAYOUT, settings.train_crop, [source.name for source in sources], hashes])
    key = sha256(text.encode()).hexdigest()[:16]
    folder = cache_dir() / "pixels" / key
    index = read_index(folder)
    if index is not None and (wrong := wrong_size(folder, index["lr_shapes"])):
        print(f"{wrong}; decoded again", flush=True)
        index = None
    index = index or _build(folder, key, sources, settings, progress)
    kept = [source for source in sources if source.name not in index["left_out"]]
    return PixelStore(folder, lambda number: read_source(kept[number], settings.train_crop))


def _build(
    folder: Path, key: str, sources: list[Source], settings: DataSettings, progress: Progress | None,
) -> dict[str, Any]:
    """Decode into a new folder and put that in place; returns its index."""
    try:
        with building_folder(folder) as building:
            index = {"key": key} | _decode(building, sources, settings.train_crop, progress)
            failed = list(index["left_out"].values())
            if failed and (settings.source != "folders" or not index["names"]):
                raise UserError("; ".join(failed[:20]))
            write_json(building / "index.json", index, place="PAPERLIB_CACHE")
            for file in folder.glob("teacher-*"):  # of a damaged store, or one of an older version
                file.rename(building / file.name)
    except OSError as error:
        raise explain(error, folder, place="PAPERLIB_CACHE") from error
    return index


def _decode(building: Path, sources: list[Source], crop: int, progress: Progress | None) -> dict[str, Any]:
    """Decode all photographs into hr.u8 and lr.u8, in order; those that cannot be read are left out and named.

    Returns:
        Of the index: `names`, `lr_shapes` and `sha256` of what was kept, `left_out` (name: why).

    Raises:
        UserError: too little disk space.
    """
    names: list[str] = []
    shapes: list[tuple[int, int]] = []
    hashes: dict[str, list[str]] = {"lr": [], "hr": []}
    left_out: dict[str, str] = {}
    with (building / "hr.u8").open("wb") as hr_file, (building / "lr.u8").open("wb") as lr_file, \
            ThreadPoolExecutor() as pool:
        window, done = 16, 0  # photographs decoded ahead: bounds memory
        for start in range(0, len(sources), window):
            batch = sources[start : start + window]
            for source, pair in zip(batch, pool.map(partial(_read, crop=crop), batch), strict=True):
                if isinstance(pair, UserError):
                    left_out[source.name] = str(pair)
                else:
                    _check_room(building, pair, len(sources) - done)
                    for part, file in (("lr", lr_file), ("hr", hr_file)):
                        pixels = np.ascontiguousarray(getattr(pair, part))
                        file.write(pixels)
                        hashes[part].append(sha256(pixels).hexdigest())
                    names.append(source.name)
                    shapes.append((int(pair.lr.shape[0]), int(pair.lr.shape[1])))
                done += 1
                if progress:
                    progress(done, len(sources))
    return {"names": names, "lr_shapes": shapes, "sha256": hashes, "left_out": left_out}


def _read(source: Source, crop: int) -> Pair | UserError:
    try:
        return read_source(source, crop)
    except UserError as error:
        return error


def _check_room(building: Path, pair: Pair, left: int) -> None:
    """Refuse early, by the size of one photograph, what the disk will not hold."""
    need, free = (pair.hr.nbytes + pair.lr.nbytes) * left, shutil.disk_usage(building).free
    if free < need // 2:
        raise UserError(f"training pixels need about {need / 1e9:.1f} GB more in {building.parent}, "
                        f"{free / 1e9:.1f} GB are free. Free some, or set PAPERLIB_CACHE to a larger disk.")
