"""Freed memory kept for the next layer, which spares a large network on a CPU most of its page faults.

glibc maps every large activation anew and unmaps it afterwards. For a 680×450 image the teacher spent 18 of 45 seconds
in the kernel that way (0.6 of 24 with this). Notebooks start with the same settings in their environment.
"""

import ctypes
import io
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paperlib import __version__
from paperlib.errors import UserError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h


@lru_cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory in this process rather than return it; peak memory grows by about a quarter.

    Returns:
        Whether the C library took the settings; False (and nothing done) where it is not glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


PACKAGES = ("torch", "torchvision", "tensorflow", "ai-edge-litert", "timm", "numpy", "accelerate",
            "mamba-ssm", "scikit-image")


def root() -> Path:
    """The clone in use: the one that holds the package, else the one around the current folder, else that folder."""
    for folder in (Path(__file__).parents[1], Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return Path.cwd()


@cache
def _commit() -> dict[str, Any]:
    """Commit and whether the work tree differs from it (results excepted); None outside a git checkout."""
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root()), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", ":!results")
    except FileNotFoundError:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def provenance() -> dict[str, Any]:
    """Commit, versions, device and threads of this process; a package that is not installed has version None.

    torch is asked for its device and threads where it is in use, and not loaded for it.
    """
    torch = sys.modules.get("torch")
    versions: dict[str, str | None] = {"python": platform.python_version(), "paperlib": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    cuda = bool(torch and torch.cuda.is_available())
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    return _commit() | {"versions": versions, "device": device, "cuda": cuda,
                        "threads": torch.get_num_threads() if torch else os.cpu_count(),
                        "platform": platform.platform()}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """For the block, what C++ libraries write to file descriptor 2 is dropped: news, not errors, which they raise."""
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
    except (OSError, ValueError):  # there is no stderr
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def cache_dir() -> Path:
    """Folder for downloads, decoded pixels and teacher outputs: `PAPERLIB_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("PAPERLIB_CACHE")
    if chosen:
        return _absolute("PAPERLIB_CACHE", chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "paperlib"


def _absolute(variable: str, value: str) -> Path:
    """The folder a variable names. A relative one is made absolute in the environment too, once, for the processes that
    inherit it; kernels work in notebooks/, and mean the clone that holds it."""
    if not Path(value).is_absolute():
        here = Path.cwd()
        base = here.parent if here == root() / "notebooks" else here
        value = os.environ[variable] = os.path.normpath(base / value)
    return Path(value)


def settle_folders() -> None:
    """Make relative folders in the environment absolute, before anything changes the working folder or starts another
    process."""
    for variable in ("PAPERLIB_CACHE", "PAPERLIB_DATA", "PAPERLIB_ASSETS"):
        if value := os.environ.get(variable):
            _absolute(variable, value)


def escape_unprintable() -> None:
    """Let stdout and stderr write what they cannot encode (names that are no UTF-8, ASCII terminals) as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _folder_from(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    folder = _absolute(variable, value)
    if not folder.is_dir():
        raise UserError(f"{variable}={value} is not a folder. Unset it or point it to an existing folder.")
    return folder


def assets_dir() -> Path | None:
    """Folder of downloaded weights named by `PAPERLIB_ASSETS`, or None when unset."""
    return _folder_from("PAPERLIB_ASSETS")


def data_dir() -> Path | None:
    """Folder of image sets named by `PAPERLIB_DATA`, or None when unset."""
    return _folder_from("PAPERLIB_DATA")


def portable(text: str) -> str:
    """Text with the folders of this machine named by the variables that choose them, for results that others read."""
    chosen = {f"${name}": os.environ.get(name, "").rstrip("/") for name in ("PAPERLIB_ASSETS", "PAPERLIB_DATA")}
    for name, place in (chosen | {"$PAPERLIB_CACHE": str(cache_dir())}).items():
        if place.count("/") > 1:  # a folder named / or /data would be found in other paths
            text = re.sub(rf"{re.escape(place)}(?=/|$)", lambda _, name=name: name, text)
    return text


KERNEL_ENVIRONMENT = {
    # glibc otherwise maps and unmaps large activations at every step, which costs more than computing them.
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "500000000",
    # Threads that wait by spinning take the processor from the one they wait for, on any machine that does other work.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TF_CPP_MIN_LOG_LEVEL": "2", "TQDM_MININTERVAL": "30", "PAPERLIB_PROGRESS": "plain",
    "PAPERLIB_WIDGETS": "0",  # nobody is there to turn a slider, also where JupyterLab's kernel started us
}
