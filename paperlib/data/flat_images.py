"""Images one after the other in one memory-mapped file, checked against their hashes when first read (section 4)."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np

from paperlib.errors import UserError


class FlatImages(Sequence[np.ndarray]):
    """Images (H, W, 3) uint8 that lie one after the other in a memory-mapped file.

    Args:
        path: the file; with mode "r+" it is made where it is missing, with all its bytes allocated.
        shapes: (H, W) of each image.
        hashes: SHA-256 of each image, checked when it is read for the first time; None checks nothing.
        mend: called with the number of an image whose bytes are not those; gives them, or raises.

    Raises:
        OSError: the disk is full (a mapped page without room would kill the process), or the file cannot be opened.
    """

    def __init__(self, path: Path, shapes: list[tuple[int, int]], mode: str = "r",
                 hashes: list[str] | None = None, mend: Callable[[int], np.ndarray] | None = None) -> None:
        self.path, self.shapes, self.hashes, self._mend = path, shapes, hashes, mend
        self.offsets = np.cumsum([0] + [3 * height * width for height, width in shapes])
        self._mended: dict[int, np.ndarray] = {}
        self._unread = set(range(len(shapes))) if hashes is not None else set()
        total = int(self.offsets[-1])
        if mode != "r":
            _allocate(path, total)
        self.pixels = np.memmap(path, np.uint8, "r" if mode == "r" else "r+", shape=(total,))

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self.shapes))[index]
        if index in self._unread:
            if not self._sound(index):
                self._replace(index)
            self._unread.discard(index)
        return self._mended[index] if index in self._mended else self._bytes(index)

    def _bytes(self, index: int) -> np.ndarray:
        height, width = self.shapes[index]
        return self.pixels[self.offsets[index] : self.offsets[index + 1]].reshape(height, width, 3)

    def _sound(self, index: int) -> bool:
        return self.hashes is None or sha256(self._bytes(index)).hexdigest() == self.hashes[index]

    def _replace(self, index: int) -> None:
        """Put a damaged image right: in the file where that can be written, else for this process."""
        pixels = np.ascontiguousarray(self._mend(index)) if self._mend else None
        if pixels is None or sha256(pixels).hexdigest() != self.hashes[index]:
            raise UserError(f"image {index} of {self.path} is damaged. Delete {self.path.parent} and try again.")
        try:
            with self.path.open("r+b") as file:
                file.seek(int(self.offsets[index]))
                file.write(pixels)
        except OSError:  # a cache shared read-only
            self._mended[index] = pixels

    def damaged(self) -> list[int]:
        """Numbers of the images whose bytes are not those of their hashes, found on all processors."""
        with ThreadPoolExecutor() as pool:
            sound = list(pool.map(self._sound, range(len(self))))
        self._unread &= {index for index, good in enumerate(sound) if not good}
        return sorted(self._unread)


def _allocate(path: Path, total: int) -> None:
    fresh = not path.exists() or path.stat().st_size != total
    try:
        with path.open("wb" if fresh else "r+b") as file:
            if total:
                os.posix_fallocate(file.fileno(), 0, total)
    except OSError:
        if fresh:
            path.unlink(missing_ok=True)
        raise
