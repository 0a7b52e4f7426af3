"""A teacher's outputs for whole training photographs, computed once, kept as 8-bit pixels with hashes (section 3)."""

import errno
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from paperlib.data.flat_images import FlatImages
from paperlib.data.pixel_store import PixelStore, read_hashes, read_index
from paperlib.environment import keep_freed_memory
from paperlib.errors import UserError
from paperlib.files import Progress, explain, file_lock, write_json
from paperlib.teacher.distillation import TeacherSource
from paperlib.teacher.network import TILE, TeacherUpscaler

PLACE = "PAPERLIB_CACHE (finished photographs are kept)"
"""What chooses another folder, for messages."""
Elsewhere = dict[tuple[str, tuple[int, int]], tuple[FlatImages, int]]
"""SHA-256 and shape of LR pixels → file of outputs, number in it."""


def outputs_key(source: TeacherSource) -> str:
    """Key of a teacher's cached outputs: its weights, its routing, and up to which side photographs stay whole."""
    return f"{source.sha256[:16]}-argmax-tile{TILE}"


def teacher_outputs(store: PixelStore, source: TeacherSource, progress: Progress | None = None) -> FlatImages:
    """The teacher's outputs for all training photographs, 8-bit, computed once; continues where it was stopped.

    Each photograph is upscaled as a whole, so that a patch's target knows more than the patch; rounding to 8 bits costs
    at most half a grey level. Photographs that another store of the cache has outputs for, by the same teacher, are
    not upscaled again: a folder more costs its own photographs only. The process then keeps freed memory.

    What is there is checked against its hashes (2 GB a second and processor), and a damaged output computed anew. A
    complete file needs no lock and no writing, so a cache may be shared read-only. Outputs without hashes, as older
    versions left them, are taken as they are and get theirs; that is said.

    Raises:
        UserError: the disk is full, or another process is computing the same outputs.
    """
    keep_freed_memory()
    key = outputs_key(source)
    path = store.teacher_outputs_path(key)
    upscale = TeacherUpscaler(source.model, source.name)
    if not path.is_file():
        with file_lock(path.with_suffix(".lock"), "PAPERLIB_CACHE"):
            if not path.is_file():
                _compute_outputs(store, upscale, key, progress)
    outputs = store.teacher_outputs(key, reopen=True)
    if outputs.hashes is None:
        print(f"{path} has no hashes (an older version wrote it): taken as it is, checked from now on", flush=True)
        _write_hashes(path, [_sha256(output) for output in outputs])
    elif damaged := outputs.damaged():
        with file_lock(path.with_suffix(".lock"), "PAPERLIB_CACHE"):
            _compute_again(store, upscale, path, outputs.hashes, damaged)
        outputs = store.teacher_outputs(key, reopen=True)
    return outputs


def _compute_again(store: PixelStore, upscale: TeacherUpscaler, path: Path, hashes: list[str],
                   damaged: list[int]) -> None:
    """Put single outputs right, in place. On another device they may differ in rounding, so they get new hashes."""
    try:
        images = FlatImages(path, [store.hr_shape(index)[:2] for index in range(len(store))], mode="r+")
        for index in damaged:
            print(f"the teacher's output for {store.names[index]} is damaged in {path}; computed again", flush=True)
            images[index][:] = _output(upscale, store, index)
            images.pixels.flush()
            hashes[index] = _sha256(images[index])
            _write_hashes(path, hashes)
    except OSError as error:
        raise explain(error, path, place="PAPERLIB_CACHE") from error


def _write_hashes(path: Path, hashes: list[str]) -> None:
    try:
        write_json(path.with_suffix(".json"), {"sha256": hashes}, place=PLACE)
    except UserError as error:
        if os.access(path.parent, os.W_OK):
            raise
        print(f"nothing is checked: {error}", flush=True)  # a cache shared read-only


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def _taken(store: PixelStore, index: int, elsewhere: Elsewhere, upscale: TeacherUpscaler) -> np.ndarray:
    """The output for a training photograph: another store's, if it is undamaged, else computed."""
    if found := elsewhere.get(store.lr_identity(index)):
        images, number = found
        with suppress(UserError):  # damaged there
            return images[number]
    return _output(upscale, store, index)


def _output(upscale: TeacherUpscaler, store: PixelStore, index: int) -> np.ndarray:
    """The teacher's output for a training photograph, uint8 (3h, 3w, 3)."""
    return np.round(upscale(store.lr(index))).astype(np.uint8)


def _of_other_stores(store: PixelStore, key: str) -> Elsewhere:
    """Finished outputs of the same teacher in the other stores of the cache."""
    found: Elsewhere = {}
    for folder in sorted(store.folder.parent.iterdir()):
        path = folder / store.teacher_outputs_path(key).name
        index = read_index(folder) if folder != store.folder and path.is_file() else None
        hashes = read_hashes(path, len(index["names"])) if index else None
        if index is None or hashes is None:
            continue
        shapes = [(height, width) for height, width in index["lr_shapes"]]
        if path.stat().st_size == sum(3 * 9 * height * width for height, width in shapes):
            images = FlatImages(path, [(3 * height, 3 * width) for height, width in shapes], hashes=hashes)
            found |= {(digest, shape): (images, number)
                      for number, (digest, shape) in enumerate(zip(index["sha256"]["lr"], shapes, strict=True))}
    return found


def _compute_outputs(store: PixelStore, upscale: TeacherUpscaler, key: str, progress: Progress | None) -> None:
    """Fill the key's file by way of a `.part`, whose finished photographs are counted, with hashes, in a `.json`."""
    shapes = [store.hr_shape(index)[:2] for index in range(len(store))]
    path = store.teacher_outputs_path(key)
    part, marks = path.with_suffix(".part"), path.with_suffix(".json")
    try:
        hashes = _finished(marks) if part.is_file() else []
        need, free = sum(3 * height * width for height, width in shapes), shutil.disk_usage(store.folder).free
        if not part.is_file() and free < need:
            raise OSError(errno.ENOSPC, f"{need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        images = FlatImages(part, shapes, mode="r+")
        elsewhere = _of_other_stores(store, key)
        for index in range(len(store)):
            if index < len(hashes) and _sha256(images[index]) == hashes[index]:
                continue
            images[index][:] = _taken(store, index, elsewhere, upscale)
            images.pixels.flush()
            hashes[index:] = [_sha256(images[index]), *hashes[index + 1 :]]
            write_json(marks, {"sha256": hashes}, place=PLACE)
            if progress:
                progress(index + 1, len(store))
        part.rename(path)
    except OSError as error:
        raise explain(error, part, place=PLACE) from error


def _finished(marks: Path) -> list[str]:
    """Hashes of the outputs that an interrupted computation has finished."""
    try:
        return list(json.loads(marks.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
