"""The machine: its folders, versions and commit for records, allocator settings, progress."""

import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from paperlib import __version__
from paperlib.errors import UserError

PACKAGES = ("torch", "torchvision", "tensorflow", "ai-edge-litert", "timm", "numpy", "accelerate",
            "mamba-ssm", "pytorch-optimizer", "scikit-image")
INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8",
                "asimd", "asimddp", "i8mm", "sve")
"""What makes one processor's kernels another's, as Linux names it."""
FOLDERS = ("PAPERLIB_ASSETS", "PAPERLIB_DATA", "PAPERLIB_CACHE")
"""Folders: downloaded weights, image sets, and what this kit downloads and builds."""


@lru_cache
def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory in this process; whether it is glibc and did.

    It otherwise maps every large activation anew, 18 of a teacher's 45 seconds. Peak memory grows
    by about a quarter.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def root() -> Path:
    """The clone in use: what holds the package, else is around the current folder, else that."""
    for folder in (Path(__file__).parents[1], Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return Path.cwd()


@cache
def _commit() -> dict[str, Any]:
    """Commit, and whether the work tree (but for results) differs from it; None without git."""
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"),
                "dirty": bool(git("status", "--porcelain", "--", ".", ":!results"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The processor's model, how many there are, and which of `INSTRUCTIONS` (None: not known)."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    has = flags[1].split() if flags else []
    return {"model": model[1] if model else platform.processor() or platform.machine(),
            "count": os.cpu_count(),
            "instructions": [name for name in INSTRUCTIONS if name in has] if text else None}


def package_version(package: str) -> str | None:
    """Installed version, None without one; TensorFlow's build for CPUs goes by another name."""
    for name in (package, f"{package}-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def provenance() -> dict[str, Any]:
    """Commit, versions (None: not installed), device, processor, threads and load average.

    torch is asked for its device and threads where it is in use, and not loaded for it.
    """
    torch = sys.modules.get("torch")
    cuda = bool(torch and torch.cuda.is_available())
    versions = {"python": platform.python_version(), "paperlib": __version__}
    return _commit() | {
        "versions": versions | {name: package_version(name) for name in PACKAGES},
        "device": (torch.cuda.get_device_name() if cuda
                   else platform.processor() or platform.machine()),
        "cuda": cuda, "cpu": processor(),
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
        "platform": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()]}


def absolutise_env() -> None:
    """Make relative folders in the environment absolute, before the working folder changes.

    Kernels work in notebooks/, and mean the clone that holds it.
    """
    here = Path.cwd()
    base = here.parent if here == root() / "notebooks" else here
    for variable in FOLDERS:
        if value := os.environ.get(variable):
            os.environ[variable] = os.path.normpath(base / _home(value))


def _home(text: str | Path) -> Path:
    """A folder with a leading `~` expanded, which no shell does in a file of settings."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (leaves the name of an unknown user)


def cache_dir() -> Path:
    """Folder for downloads and decoded pixels: `PAPERLIB_CACHE`, else the user's cache folder."""
    if own := os.environ.get("PAPERLIB_CACHE"):
        return _home(own)
    usual = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (usual if usual.is_absolute() else _home("~/.cache")) / "paperlib"


def _folder_from(variable: str) -> Path | None:
    folder = _home(value) if (value := os.environ.get(variable)) else None
    if folder and not folder.is_dir():
        raise UserError(f"{variable}={value} is not a folder. Unset it or name an existing one.")
    return folder


def assets_dir() -> Path | None:
    """Folder of downloaded weights named by `PAPERLIB_ASSETS`, or None when unset."""
    return _folder_from("PAPERLIB_ASSETS")


def data_dir() -> Path | None:
    """Folder of image sets named by `PAPERLIB_DATA`, or None when unset."""
    return _folder_from("PAPERLIB_DATA")


def _folders(out: Path | None) -> dict[str, str]:
    """Folders of this machine by the name that results give them; a folder / is none."""
    chosen = {"$OUT": out or "", "$PAPERLIB_ASSETS": os.environ.get("PAPERLIB_ASSETS", ""),
              "$PAPERLIB_DATA": os.environ.get("PAPERLIB_DATA", ""), "$PAPERLIB_CACHE": cache_dir(),
              "$CLONE": root(), "$TMPDIR": tempfile.gettempdir(), "$HOME": Path.home(),
              "$VIRTUAL_ENV": sys.prefix if sys.prefix != sys.base_prefix else ""}
    return {name: text for name, place in chosen.items() if (text := str(place).rstrip("/"))}


def from_portable(text: str, out: Path) -> Path:
    """The file that a result names (`to_portable` undone); relative paths are the run's."""
    name, slash, rest = text.partition("/")
    return out / (_folders(out).get(name, name) + slash + rest)


def to_portable(text: str, out: Path | None = None) -> str:
    """Text with this machine's folders named by what chooses them, for results that others read.

    $OUT is the run's folder `out`; then $PAPERLIB_ASSETS, $CLONE, $HOME … ; the innermost first.
    """
    for name, place in sorted(_folders(out).items(), key=lambda pair: -len(pair[1])):
        whole = rf"(?<![\w./+$~-]){re.escape(place)}(?![\w-]|\.\w)"  # names of absolute paths only
        text = re.sub(whole, lambda _, name=name: name, text)
    return text


@contextmanager
def silence_native_stderr(tell: bool = True, log: Path | None = None) -> Iterator[None]:
    """For the block, keep back what C++ libraries and child processes write to stderr.

    It comes out where the block fails, unless not `tell` (the exception says the same) or it is
    added to the file `log`.
    """
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
    except (AttributeError, OSError, ValueError):  # there is no stderr
        yield
        return
    with os.fdopen(terminal, "wb"), log.open("ab") if log else tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            if tell and not log:
                kept.seek(0)
                os.write(terminal, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)


def _in_notebook() -> bool:
    return type(sys.stderr).__module__.startswith("ipykernel")


def plain_lines() -> TextIO | None:
    """Where progress goes as plain lines, one at intervals; None where a bar can be drawn.

    PAPERLIB_PROGRESS=plain: stdout, which a notebook's executed copy keeps. Else stderr where that
    is no terminal: a bar makes one endless line of a file.
    """
    if os.environ.get("PAPERLIB_PROGRESS") == "plain":
        return sys.stdout
    return None if _in_notebook() or sys.stderr.isatty() else sys.stderr


class Progress:
    """A bar in a terminal or notebook; elsewhere (`plain_lines`) one line every 20 seconds."""

    interval = 20.0

    def __init__(self, name: str, total: int | None = None, start: int = 0, quiet: bool = False):
        from tqdm.auto import tqdm

        self.name, self.start, self.plain = name, start, None if quiet else plain_lines()
        self.began = self.spoke = time.monotonic()
        self.bar = tqdm(total=total, initial=start, desc=name, leave=total is not None,
                        disable=quiet or self.plain is not None)
        self.close = self.bar.close

    def update(self, done: int, total: int, said: str = "") -> None:
        """So much is done by now; the last of a training's steps is always said."""
        now, self.bar.total = time.monotonic(), total
        self.bar.set_postfix_str(said, refresh=False)
        self.bar.update(done - self.bar.n)
        if self.plain and (now - self.spoke > self.interval or (said and done == total)):
            self.spoke = now
            left = (now - self.began) / max(1, done - self.start) * (total - done)
            print(f"{self.name} {done}/{total}{said}, {left:.0f} s left", file=self.plain,
                  flush=True)


def log_stderr(line: str) -> None:
    """Say on stderr what takes a while now; not in a notebook, whose cells say it themselves."""
    if not _in_notebook():
        print(line, file=sys.stderr, flush=True)


KERNEL_ENVIRONMENT = {
    # As `keep_freed_memory`, from the kernel's start.
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
    # Threads that wait by spinning take the processor from the one they wait for.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TF_CPP_MIN_LOG_LEVEL": "2", "TQDM_MININTERVAL": "30", "PAPERLIB_PROGRESS": "plain",
    "PAPERLIB_WIDGETS": "0",  # nobody is there to turn a slider
}
