"""Which teacher a run learns from, and its outputs as training targets (paper sections 2 and 3).

A teacher is always named: published weights (found or downloaded, hash checked) or a small network
trained here.
"""

import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.data.download import fetch
from paperlib.data.pixel_store import PixelStore, read_pixels, write_pixels
from paperlib.environment import assets_dir, cache_dir, keep_freed_memory
from paperlib.errors import UserError
from paperlib.files import read_json, write_json
from paperlib.settings import TeacherSettings
from paperlib.student.models import weights_hash
from paperlib.teacher.network import (
    PUBLISHED_SHA256,
    TILE,
    MambaIRv2Light,
    TeacherShape,
    TeacherUpscaler,
    load_teacher,
)
from paperlib.teacher.scan import scan_backend

FILE = "mambairv2_lightSR_x3.pth"
URLS = (f"https://github.com/NguyenPhamPhuongNam/AIO_MAI/raw/main/{FILE}",
        f"https://github.com/csguoh/MambaIR/releases/download/v1.0/{FILE}")
BYTES = 4_061_111  # of the published file


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


def published_weights() -> tuple[Path | None, str]:
    """The published file, from PAPERLIB_ASSETS, the cache, or downloaded; or None and why not."""
    places = [folder / FILE for folder in (assets_dir(), cache_dir() / "weights") if folder]
    for path in places:
        if path.is_file():
            return path, f"found at {path}"
    absent = f"not at {' or '.join(map(str, places))}, and"
    if os.environ.get("PAPERLIB_OFFLINE"):
        return None, f"{absent} downloads are off"
    failures = []
    for url in URLS:
        try:
            problem = fetch(url, path, BYTES, PUBLISHED_SHA256, retries=1)
        except UserError as error:  # an unwritable cache: a small teacher needs none
            problem = str(error)
        if not problem:
            return path, "downloaded"
        failures.append(f"{urllib.parse.urlsplit(url).hostname or url}: {problem}")
    return None, f"{absent} not downloadable ({'; '.join(dict.fromkeys(failures))})"


def decide_teacher(settings: TeacherSettings, pin: Path) -> TeacherSettings:
    """The settings with `kind` published or small: decided once a run, kept in the file `pin`."""
    kind, kept = settings.kind, read_json(pin) if pin.is_file() else {}
    if kept and kind not in ("auto", kept["kind"]):
        raise UserError(f"this run learns from the {kept['kind']} teacher ({pin}), but "
                        f"teacher.kind={kind}. Set teacher.kind={kept['kind']}, choose another "
                        f"--out, or delete {pin.parent} and the stages trained with it.")
    if kept:
        kind = kept["kind"]
    elif kind == "auto":
        path, reason = published_weights()
        kind = "published" if path else "small"
        reason = f"teacher.kind=auto: published weights {reason}"
        write_json(pin, {"kind": kind, "reason": reason})
    return settings.model_copy(update={"kind": kind})


def pin_teacher(source: TeacherSource, kind: str, pin: Path) -> TeacherSource:
    """Keep a run's teacher with its weights' hash in the file `pin`, which also gives `reason`."""
    kept = read_json(pin) if pin.is_file() else {}
    if kind == "small":
        source = replace(source, reason=kept.get("reason", source.reason))
    if kept.get("sha256", source.sha256) != source.sha256:
        raise UserError(f"the teacher has other weights ({source.sha256[:16]}…) than this run has "
                        f"learned from ({kept['sha256'][:16]}…, {pin}). Put those back, choose "
                        f"another --out, or delete {pin.parent} and the stages trained with it.")
    if "sha256" not in kept:
        write_json(pin, {"kind": kind, "reason": source.reason} | kept | {"sha256": source.sha256})
    return source


def find_teacher(settings: TeacherSettings,
                 train_small: Callable[[nn.Module], nn.Module]) -> TeacherSource:
    """The teacher of a decided kind; `train_small` trains the small network, or loads it."""
    if settings.kind == "published":
        return published_teacher()
    with torch.random.fork_rng():  # the same start every time; nobody else's random numbers move
        torch.manual_seed(0)
        start = MambaIRv2Light(TeacherShape(dim=settings.small_dim, groups=1,
                                            layers=settings.small_layers))
    model = train_small(start)
    return TeacherSource(model.eval(), "small MambaIRv2 trained here (not the paper's teacher)",
                         weights_hash(model), "teacher.kind=small")


def published_teacher() -> TeacherSource:
    """The published teacher, or a UserError where its weights cannot be had."""
    path, reason = published_weights()
    if path is None:
        folder = cache_dir() / "weights"
        raise UserError(f"the published teacher is needed: {reason}. Put {FILE} (SHA-256 "
                        f"{PUBLISHED_SHA256}) into {folder}, set PAPERLIB_ASSETS to its folder, or "
                        "begin a run with teacher.kind=small in another --out.")
    name = "MambaIRv2-light (published weights)"
    return TeacherSource(load_teacher(path), name, PUBLISHED_SHA256, reason)


def published_upscaler() -> TeacherUpscaler:
    """The published teacher as an upscaler; the process then keeps freed memory."""
    keep_freed_memory()
    source = published_teacher()
    return TeacherUpscaler(source.model, source.name, source.sha256)


def outputs_key(source: TeacherSource) -> str:
    """Key of a teacher's cached outputs: weights, routing, longest side that stays whole."""
    return f"{source.sha256[:16]}-argmax-tile{TILE}"


def teacher_outputs(store: PixelStore, source: TeacherSource) -> list[np.ndarray]:
    """The teacher's outputs for all training photographs, uint8 (3h, 3w, 3), computed once.

    Each is of the whole photograph, so that a patch's target knows more than the patch, and has a
    file of its own: what is stopped goes on. The process then keeps freed memory.
    """
    keep_freed_memory()
    key, upscale = outputs_key(source), TeacherUpscaler(source.model, source.name)
    for index in range(len(store)):
        path = store.output_path(key, index)
        if read_pixels(path) is None:
            write_pixels(path, np.round(upscale(store.lr(index))).astype(np.uint8))
    return store.teacher_outputs(key)


def on_the_fly(model: nn.Module, white: int) -> Callable[[Tensor], Tensor]:
    """Targets computed for each patch, as published, by a network on images in 0..white: LR
    (B, 3, p, p) in 0..255 → (B, 3, 3p, 3p) in 0..1, clamped."""
    model = model.eval()

    @torch.no_grad()
    def compute(lr_255: Tensor) -> Tensor:
        lr = lr_255 if white == 255 else lr_255 / 255
        return (model.to(lr.device)(lr) / white).clamp(0, 1)

    return compute


@dataclass
class Targets:
    """Distillation targets of a run: cached outputs, or a network asked for each patch."""

    name: str  # which teacher, for tables and for the identity of a training
    key: str | None = None  # key of the cached outputs beside the training pixels
    compute: Callable[[Tensor], Tensor] | None = None
    about: str = ""
    """The teacher network in one sentence, for records; empty for the student itself."""
