"""Training photographs decoded once, so that a patch costs a copy, not a PNG (section 4).

Every photograph has two files in the cache, HR and LR pixels, named by what they are made from, and
one more for each teacher's output: NumPy's .npy format and the SHA-256 of all that. A file that is
missing, or damaged when it is opened, is made again from its source.
"""

import io
import json
import math
import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np

from paperlib.data.images import free_memory, image_size
from paperlib.data.photographs import Source, read_source
from paperlib.data.sources import split_sources
from paperlib.environment import cache_dir
from paperlib.errors import UserError
from paperlib.files import Progress, atomic_path, sha256_file
from paperlib.settings import DataSettings

LAYOUT = 1  # changes when what is stored for the same photographs changes
DECODING = 40  # bytes of memory for each HR pixel of a photograph that is decoded and made smaller


def write_pixels(path: Path, pixels: np.ndarray) -> None:
    """Write pixels with their hash, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(pixels))
    with atomic_path(path, "PAPERLIB_CACHE") as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.write(sha256(buffer.getbuffer()).digest())


def read_pixels(path: Path) -> np.ndarray | None:
    """What `write_pixels` has written, mapped; None where it is missing or (said) damaged."""
    if not path.is_file():
        return None
    content = memoryview(path.read_bytes())
    if sha256(content[:-32]).digest() != content[-32:]:
        print(f"{path} is damaged, and not used", flush=True)
        return None
    return np.asarray(np.load(path, mmap_mode="r"))


class PixelStore:
    """Decoded training photographs, mapped read only.

    Args:
        key: hash of what all pixels are made from.
        photographs: name, beginning of the files' names in `folder`, and (LR, HR) pixels of each.
        left_out: photographs that could not be read, and why.
    """

    def __init__(self, folder: Path, key: str,
                 photographs: Sequence[tuple[str, str, tuple[np.ndarray, np.ndarray]]],
                 left_out: dict[str, str]) -> None:
        self.folder, self.key, self.left_out = folder, key, left_out
        self.names, self._files, self._pixels = map(list, zip(*photographs, strict=True))
        self.lr_shapes = [lr.shape[:2] for lr, _ in self._pixels]
        self._outputs: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def lr(self, index: int) -> np.ndarray:
        """LR pixels of photograph `index`, uint8 (h, w, 3)."""
        return self._pixels[index][0]

    def hr(self, index: int) -> np.ndarray:
        """HR pixels of photograph `index`, uint8 (3h, 3w, 3)."""
        return self._pixels[index][1]

    def output_path(self, teacher: str, index: int) -> Path:
        """File of the output for photograph `index` of the teacher with this key."""
        return self.folder / f"{self._files[index]}.{teacher}.npy"

    def teacher_outputs(self, teacher: str) -> list[np.ndarray]:
        """Outputs of a teacher, one uint8 (3h, 3w, 3) a photograph, checked once in a process."""
        if teacher not in self._outputs:
            paths = [self.output_path(teacher, index) for index in range(len(self))]
            with ThreadPoolExecutor() as pool:
                outputs = list(pool.map(read_pixels, paths))
            missing = [path for path, output in zip(paths, outputs, strict=True) if output is None]
            if missing:
                raise UserError(f"{len(missing)} teacher outputs are missing, {missing[0]} among "
                                "them. Run 03_teacher first, with the same settings.")
            self._outputs[teacher] = outputs
        return self._outputs[teacher]


def _key(*parts: object) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


def open_store(settings: DataSettings, progress: Progress | None = None) -> PixelStore:
    """The pixel store of the training split; what is not yet in the cache is decoded, in parallel.

    A photograph of the user's own folders that cannot be read is left out, which changes the key;
    one of a published set is an error.
    """
    sources, crop = split_sources(settings, "train"), settings.train_crop
    folder = cache_dir() / "photographs"
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 2 or 3 a photograph stay open
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda source: sha256_file(source.hr) + (
            sha256_file(source.lr) if source.lr else ""), sources))
    files = [_key(LAYOUT, crop, found) for found in hashes]
    key = _key(LAYOUT, crop, [source.name for source in sources], hashes)
    new = [source for source, file in zip(sources, files, strict=True)
           if not (folder / f"{file}.hr.npy").is_file()]
    kept, left_out = [], {}
    with ThreadPoolExecutor(_at_once(new)) as pool:
        opened = pool.map(lambda source, file: _open(folder / file, source, crop), sources, files)
        for done, (source, file, found) in enumerate(zip(sources, files, opened, strict=True), 1):
            if isinstance(found, str):
                left_out[source.name] = found
            else:
                kept.append((source.name, file, found))
            if progress:
                progress(done, len(sources))
    if left_out and (settings.source != "folders" or not kept):
        raise UserError("; ".join(list(left_out.values())[:20]))
    key = _key(key, sorted(left_out)) if left_out else key
    return PixelStore(folder, key, kept, left_out)


def _open(place: Path, source: Source, crop: int) -> tuple[np.ndarray, np.ndarray] | str:
    """LR and HR pixels, from the cache or decoded into it; or why they cannot be read."""
    paths = [place.with_name(f"{place.name}.{part}.npy") for part in ("lr", "hr")]
    lr, hr = map(read_pixels, paths)
    if lr is None or hr is None:
        try:
            pair = read_source(source, crop)
        except UserError as error:
            return str(error)
        for path, pixels in zip(paths, (pair.lr, pair.hr), strict=True):
            write_pixels(path, pixels)
        lr, hr = map(read_pixels, paths)
    return lr, hr


def _at_once(sources: Sequence[Source]) -> int:
    """How many photographs memory takes at a time."""
    largest = 1
    for source in sources:
        with suppress(UserError):  # told when it is decoded
            largest = max(largest, math.prod(image_size(source.hr)))
    return min(max(1, free_memory() // (DECODING * largest)), os.cpu_count() or 1)
