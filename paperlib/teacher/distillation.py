"""Which teacher a run learns from, and its outputs as training targets (paper sections 2 and 3).

A teacher is always named: published weights (found or downloaded, hash checked) or a small network trained here.
Nothing takes another teacher's place without saying so.
"""

import json
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from paperlib.data.download import fetch
from paperlib.environment import assets_dir, cache_dir, keep_freed_memory
from paperlib.errors import UserError
from paperlib.files import write_json
from paperlib.settings import TeacherSettings
from paperlib.student.models import weights_hash
from paperlib.teacher.network import PUBLISHED_SHA256, MambaIRv2Light, TeacherShape, TeacherUpscaler, load_teacher
from paperlib.teacher.scan import scan_backend

FILE = "mambairv2_lightSR_x3.pth"
URLS = (f"https://github.com/NguyenPhamPhuongNam/AIO_MAI/raw/main/{FILE}",
        f"https://github.com/csguoh/MambaIR/releases/download/v1.0/{FILE}")
BYTES = 4_061_111
"""Of the published file."""
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


def download_weights(path: Path, urls: tuple[str, ...], expected: str = PUBLISHED_SHA256, size: int = BYTES) -> str:
    """Fetch the published weights to `path`, checked; gives "" or in a few words why it could not be done."""
    failures = []
    for url in urls:
        try:
            problem = fetch(url, path, size, expected, retries=1, timeout=TIMEOUT)
        except UserError as error:  # a cache that cannot be written: a run with a small teacher needs none
            return str(error)
        if not problem:
            return ""
        failures.append(f"{urllib.parse.urlsplit(url).hostname or url}: {problem}")
    return "; ".join(dict.fromkeys(failures))


def published_weights(allow_download: bool = True) -> tuple[Path | None, str]:
    """The published weights' file, from PAPERLIB_ASSETS, the cache, or downloaded into it; or None and the reason."""
    places = [folder / FILE for folder in (assets_dir(), cache_dir() / "weights") if folder]
    for path in places:
        if path.is_file():
            return path, f"found at {path}"
    if not allow_download or os.environ.get("PAPERLIB_OFFLINE"):
        return None, f"not at {' or '.join(map(str, places))}, and downloads are off"
    problem = download_weights(places[-1], URLS)
    return (None, f"not at {' or '.join(map(str, places))}, and not downloadable ({problem})") if problem else (
        places[-1], "downloaded")


def small_shape(settings: TeacherSettings) -> TeacherShape:
    """The small network's size: the published architecture, narrower and shallower."""
    return TeacherShape(dim=settings.small_dim, groups=1, layers=settings.small_layers, heads=4)


def _read_pin(path: Path) -> dict[str, str]:
    """Which teacher a run has: `kind`, `reason`, and `sha256` of its weights once they are there; empty before that.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        pin = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        pin = None
    if not isinstance(pin, dict) or pin.get("kind") not in ("published", "small"):
        raise UserError(f"{path} is damaged. Write {{\"kind\": \"published\"}} or {{\"kind\": \"small\"}} into it, "
                        "whichever this run has learnt from.")
    return pin


def decide_teacher(settings: TeacherSettings, pin: Path, allow_download: bool = True) -> TeacherSettings:
    """The settings with `kind` published or small: decided once a run, then kept in the file `pin`.

    Published weights that turn up later, or are gone, give no later notebook another teacher.

    Raises:
        UserError: the settings now ask for another teacher than the run has.
    """
    kind, kept = settings.kind, _read_pin(pin)
    if kept and kind not in ("auto", kept["kind"]):
        raise UserError(f"this run learns from the {kept['kind']} teacher ({pin}), but teacher.kind={kind}. Set "
                        f"teacher.kind={kept['kind']}, choose another --out, or delete {pin.parent} and the stages "
                        "trained with it.")
    if kept:
        kind = kept["kind"]
    elif kind == "auto":
        path, reason = published_weights(allow_download)
        kind = "published" if path else "small"
        write_json(pin, {"kind": kind, "reason": f"teacher.kind=auto: published weights {reason}"})
    return settings.model_copy(update={"kind": kind})


def pin_teacher(source: TeacherSource, kind: str, pin: Path) -> TeacherSource:
    """Keep a run's teacher with its weights' hash in the file `pin`; the source tells the reason kept there.

    Raises:
        UserError: the run has had a teacher with other weights.
    """
    kept = _read_pin(pin)
    source = replace(source, reason=kept.get("reason", source.reason) if kind == "small" else source.reason)
    if kept.get("sha256", source.sha256) != source.sha256:
        raise UserError(f"the teacher has other weights ({source.sha256[:16]}…) than this run has learnt from "
                        f"({kept['sha256'][:16]}…, {pin}). Put those back, choose another --out, or delete "
                        f"{pin.parent} and the stages trained with it.")
    if "sha256" not in kept:
        write_json(pin, {"kind": kind, "reason": source.reason} | kept | {"sha256": source.sha256})
    return source


def find_teacher(
    settings: TeacherSettings, train_small: Callable[[nn.Module], tuple[nn.Module, Path]] | None = None,
    allow_download: bool = True,
) -> TeacherSource:
    """The teacher of a decided kind (`decide_teacher`).

    Args:
        settings: `kind` published or small.
        train_small: trains (or loads, when done) the small network; gives it and its file.

    Raises:
        UserError: the published weights cannot be had, or there is nothing to train a small teacher with.
        ValueError: `kind` is still auto.
    """
    if settings.kind == "auto":
        raise ValueError("teacher.kind=auto is decided by decide_teacher, once a run")
    if settings.kind == "published":
        path, reason = published_weights(allow_download)
        if path:
            return TeacherSource(load_teacher(path), "MambaIRv2-light (published weights)", PUBLISHED_SHA256, reason)
        raise UserError(f"the published teacher is needed: {reason}. Put {FILE} (SHA-256 {PUBLISHED_SHA256}) into "
                        f"{cache_dir() / 'weights'}, set PAPERLIB_ASSETS to its folder, or begin a run with "
                        "teacher.kind=small in another --out.")
    if train_small is None:
        raise UserError("no teacher here: the small one is trained by notebook 03_teacher. Run it first.")
    with torch.random.fork_rng():  # the same start every time, and nobody else's random numbers moved
        torch.manual_seed(0)
        start = MambaIRv2Light(small_shape(settings))
    model, _ = train_small(start)
    return TeacherSource(model.eval(), "small MambaIRv2 trained here (not the paper's teacher)", weights_hash(model),
                         "teacher.kind=small")


def published_upscaler() -> TeacherUpscaler:
    """The published teacher as an upscaler, for `paperlib evaluate teacher`; the process then keeps freed memory.

    Raises:
        UserError: its weights cannot be found or downloaded.
    """
    keep_freed_memory()
    source = find_teacher(TeacherSettings(kind="published"))
    return TeacherUpscaler(source.model, source.name, source.sha256)


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
