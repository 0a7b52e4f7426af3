"""Which teacher a run learns from, and its outputs as training targets (paper sections 2 and 3).

A teacher is always named: published weights (found or downloaded, hash checked) or a small network trained here.
Nothing takes another teacher's place without saying so.
"""

import errno
import hashlib
import http.client
import json
import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.data.flat_images import FlatImages
from paperlib.data.pixel_store import PixelStore
from paperlib.environment import assets_dir, cache_dir
from paperlib.errors import UserError
from paperlib.files import Progress, atomic_path, explain, file_lock, write_json
from paperlib.settings import TeacherSettings
from paperlib.student.models import weights_hash
from paperlib.teacher.network import PUBLISHED_SHA256, TILE, MambaIRv2Light, TeacherShape, TeacherUpscaler, load_teacher
from paperlib.teacher.scan import scan_backend

FILE = "mambairv2_lightSR_x3.pth"
URLS = (f"https://github.com/NguyenPhamPhuongNam/AIO_MAI/raw/main/{FILE}",
        f"https://github.com/csguoh/MambaIR/releases/download/v1.0/{FILE}")
LARGEST = 8_000_000
"""Bytes after which a download is cut off; the published file has 4,061,111."""
TIMEOUT = 10.0
"""Seconds without an answer after which a host counts as out of reach."""


@dataclass
class TeacherSource:
    """A teacher network with its name, its weights' hash, and why it was chosen."""

    model: MambaIRv2Light
    name: str
    sha256: str
    reason: str

    def describe(self) -> str:
        """One sentence for notebooks, tables and records."""
        count = sum(value.numel() for value in self.model.parameters())
        device = next(self.model.parameters()).device
        return f"{self.name} ({count:,} parameters; {self.reason}; scan: {scan_backend(device)})"


def download(path: Path, urls: tuple[str, ...], expected: str = PUBLISHED_SHA256) -> str:
    """Fetch the published weights to `path`, checked and atomically; returns "" or why it could not be done.

    Raises:
        UserError: the file cannot be written.
    """
    failures = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                content = answer.read(LARGEST + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{url}: {error}")
            continue
        if len(content) > LARGEST:
            failures.append(f"{url}: more than {LARGEST / 1e6:.0f} MB, which is not this file")
            continue
        if (digest := hashlib.sha256(content).hexdigest()) != expected:
            failures.append(f"{url}: a file with SHA-256 {digest}, not {expected}")
            continue
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return ""
    return "; ".join(failures)


def published_weights(allow_download: bool = True) -> tuple[Path | None, str]:
    """The published weights' file, from PAPERLIB_ASSETS, the cache, or downloaded into it; or None and the reason."""
    places = [folder / FILE for folder in (assets_dir(), cache_dir() / "weights") if folder]
    for path in places:
        if path.is_file():
            return path, f"found at {path}"
    if not allow_download or os.environ.get("PAPERLIB_OFFLINE"):
        return None, f"not at {' or '.join(map(str, places))}, and downloads are off"
    problem = download(places[-1], URLS)
    return (None, f"not at {' or '.join(map(str, places))}, and not downloadable ({problem})") if problem else (
        places[-1], "downloaded")


def small_shape(settings: TeacherSettings) -> TeacherShape:
    """The small network's size: the published architecture, narrower and shallower."""
    return TeacherShape(dim=settings.small_dim, groups=settings.small_groups, layers=settings.small_layers, heads=4)


def find_teacher(
    settings: TeacherSettings, train_small: Callable[[nn.Module], tuple[nn.Module, Path]] | None = None,
    allow_download: bool = True,
) -> TeacherSource:
    """The teacher that the settings ask for.

    Args:
        train_small: trains (or loads, when done) the small network; gives it and its file.

    Raises:
        UserError: the published weights are asked for and cannot be had, or a small teacher is needed and there is
            nothing to train it with.
    """
    reason = "asked for"
    if settings.kind in ("auto", "published"):
        path, reason = published_weights(allow_download)
        if path:
            return TeacherSource(load_teacher(path), "MambaIRv2-light (published weights)", PUBLISHED_SHA256, reason)
        if settings.kind == "published":
            raise UserError(f"the published teacher is needed: {reason}. Put {FILE} (SHA-256 {PUBLISHED_SHA256}) into "
                            f"{cache_dir() / 'weights'}, set PAPERLIB_ASSETS to its folder, or set teacher.kind=small.")
        print(f"published teacher {reason}; a small one takes its place")
    if train_small is None:
        raise UserError("no teacher here: the small one is trained by notebook 03_teacher. Run it first.")
    torch.manual_seed(0)
    model, _ = train_small(MambaIRv2Light(small_shape(settings)))
    return TeacherSource(model.eval(), "small MambaIRv2 trained here (not the paper's teacher)", weights_hash(model),
                         f"published weights {reason}" if settings.kind == "auto" else "teacher.kind=small")


def published_upscaler() -> TeacherUpscaler:
    """The published teacher as an upscaler, for `paperlib evaluate teacher`.

    Raises:
        UserError: its weights cannot be found or downloaded.
    """
    source = find_teacher(TeacherSettings(kind="published"))
    return TeacherUpscaler(source.model, source.name, source.sha256)


def outputs_key(source: TeacherSource) -> str:
    """Key of a teacher's cached outputs: its weights, its routing, and up to which side photographs stay whole."""
    return f"{source.sha256[:16]}-argmax-tile{TILE}"


def teacher_outputs(store: PixelStore, source: TeacherSource, progress: Progress | None = None) -> FlatImages:
    """The teacher's outputs for all training photographs, 8-bit, computed once; continues where it was stopped.

    Each photograph is upscaled as a whole, so that a patch's target knows more than the patch; rounding to 8 bits costs
    at most half a grey level.

    What is there is checked against its hashes (2 GB a second and processor), and a damaged output computed anew. A
    complete file needs no lock and no writing, so a cache may be shared read-only. Outputs without hashes, as older
    versions left them, are taken as they are and get theirs; that is said.

    Raises:
        UserError: the disk is full, or another process is computing the same outputs.
    """
    key = outputs_key(source)
    path = store.teacher_outputs_path(key)
    upscale = TeacherUpscaler(source.model, source.name)
    if not path.is_file():
        with file_lock(path.with_suffix(".lock"), "PAPERLIB_CACHE"):
            if not path.is_file():
                _compute_outputs(store, upscale, path, progress)
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
        write_json(path.with_suffix(".json"), {"sha256": hashes})
    except UserError as error:
        if os.access(path.parent, os.W_OK):
            raise
        print(f"nothing is checked: {error}", flush=True)  # a cache shared read-only


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def _output(upscale: TeacherUpscaler, store: PixelStore, index: int) -> np.ndarray:
    """The teacher's output for a training photograph, uint8 (3h, 3w, 3)."""
    return np.round(upscale(store.lr(index))).astype(np.uint8)


def _compute_outputs(store: PixelStore, upscale: TeacherUpscaler, path: Path, progress: Progress | None) -> None:
    """Fill `path` by way of a `.part` file, whose finished photographs are counted, with hashes, in a `.json`."""
    shapes = [store.hr_shape(index)[:2] for index in range(len(store))]
    part, marks = path.with_suffix(".part"), path.with_suffix(".json")
    try:
        hashes = _finished(marks) if part.is_file() else []
        need, free = sum(3 * height * width for height, width in shapes), shutil.disk_usage(store.folder).free
        if not part.is_file() and free < need:
            raise OSError(errno.ENOSPC, f"{need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        images = FlatImages(part, shapes, mode="r+")
        for index in range(len(store)):
            if index < len(hashes) and _sha256(images[index]) == hashes[index]:
                continue
            images[index][:] = _output(upscale, store, index)
            images.pixels.flush()
            hashes[index:] = [_sha256(images[index]), *hashes[index + 1 :]]
            write_json(marks, {"sha256": hashes})
            if progress:
                progress(index + 1, len(store))
        part.rename(path)
    except OSError as error:
        raise explain(error, part, place="PAPERLIB_CACHE (finished photographs are kept)") from error


def _finished(marks: Path) -> list[str]:
    """Hashes of the outputs that an interrupted computation has finished."""
    try:
        return list(json.loads(marks.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


class OnTheFlyTeacher:
    """Targets computed for each patch, as published: LR (B, 3, p, p) in 0..255 → (B, 3, 3p, 3p) in 0..1, clamped."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, lr_255: Tensor) -> Tensor:
        self.model.to(lr_255.device)
        return self.model(lr_255 / 255).clamp(0, 1)


@dataclass
class Targets:
    """Distillation targets of a run: cached whole-photograph outputs, or a network asked for each patch."""

    name: str
    """Which teacher, for tables and for the identity of a training."""
    key: str | None = None
    """Key of the cached outputs beside the training pixels."""
    compute: Callable[[Tensor], Tensor] | None = None
