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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

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
            "mamba-ssm", "pytorch-optimizer", "scikit-image")


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


INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp",
                "i8mm", "sve")
"""What makes one processor's kernels another's, as Linux names it."""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """The processor's model, how many of them there are, and which of `INSTRUCTIONS` it has.

    Args:
        cpuinfo: Linux's description; where there is none, the instructions are None: not known.
    """
    known = {"model": platform.processor() or platform.machine(), "count": os.cpu_count(), "instructions": None}
    if not cpuinfo.is_file():
        return known
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # of the first processor
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return known | {"model": fields.get("model name", known["model"]),
                    "instructions": [name for name in INSTRUCTIONS if name in flags]}


def _version(package: str) -> str | None:
    """Installed version, None without one; TensorFlow's build for CPUs goes by another name."""
    for name in (package, f"{package}-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def provenance() -> dict[str, Any]:
    """Commit, versions, device, processor, threads and load average of the last 1, 5 and 15 minutes.

    A package that is not installed has version None. torch is asked for its device and threads where it is in use, and
    not loaded for it.
    """
    torch = sys.modules.get("torch")
    versions: dict[str, str | None] = {"python": platform.python_version(), "paperlib": __version__}
    versions |= {name: _version(name) for name in PACKAGES}
    cuda = bool(torch and torch.cuda.is_available())
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    return _commit() | {"versions": versions, "device": device, "cuda": cuda, "cpu": processor(),
                        "threads": torch.get_num_threads() if torch else os.cpu_count(),
                        "platform": platform.platform(),
                        "load_average": [round(load, 2) for load in os.getloadavg()]}


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


def _folders(out: Path | None) -> dict[str, str]:
    """Folders of this machine by the name that results give them; a folder / is none."""
    chosen = {"$OUT": str(out or ""), **{f"${name}": os.environ.get(name, "") for name in (
        "PAPERLIB_ASSETS", "PAPERLIB_DATA")}, "$PAPERLIB_CACHE": str(cache_dir()), "$CLONE": str(root()),
        "$VIRTUAL_ENV": sys.prefix if sys.prefix != sys.base_prefix else "", "$TMPDIR": tempfile.gettempdir(),
        "$HOME": str(Path.home())}
    return {name: place.rstrip("/") for name, place in chosen.items() if place.rstrip("/")}


def located(text: str, out: Path) -> Path:
    """The file on this machine that a result names: undoes `portable` for one path; relative paths are the run's."""
    name, slash, rest = text.partition("/")
    return out / (_folders(out).get(name, name) + slash + rest)


def portable(text: str, out: Path | None = None) -> str:
    """Text with the folders of this machine named by what chooses them, for results that others read.

    Args:
        out: the run's folder, named $OUT.

    Returns:
        The text with $OUT, $PAPERLIB_ASSETS, $PAPERLIB_DATA, $PAPERLIB_CACHE, $CLONE, $VIRTUAL_ENV, $TMPDIR and $HOME
        for these folders, the innermost first.
    """
    for name, place in sorted(_folders(out).items(), key=lambda pair: -len(pair[1])):
        # whole folder names of absolute paths only
        text = re.sub(rf"(?<![\w./+$~-]){re.escape(place)}(?![\w-]|\.\w)", lambda _, name=name: name, text)
    return text


@contextmanager
def quiet_libraries(tell: bool = True) -> Iterator[None]:
    """For the block, what C++ libraries write to stderr is kept back.

    Args:
        tell: where the block fails, it comes out; False where the exception says the same.
    """
    try:
        sys.stderr.flush()
        terminal = os.dup(2)
    except (AttributeError, OSError, ValueError):  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            if tell:
                kept.seek(0)
                os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _in_notebook() -> bool:
    return type(sys.stderr).__module__.startswith("ipykernel")


def plain_lines() -> TextIO | None:
    """Where progress goes as plain lines, one at intervals; None where a bar can be drawn.

    With PAPERLIB_PROGRESS=plain that is stdout, which a notebook's executed copy keeps. Else it is stderr where that is
    no terminal, as a bar's carriage returns make one endless line of a file.
    """
    if os.environ.get("PAPERLIB_PROGRESS") == "plain":
        return sys.stdout
    return None if _in_notebook() or sys.stderr.isatty() else sys.stderr


def tell(line: str) -> None:
    """Say on stderr what takes a while now; nothing in a notebook, whose cells say it themselves."""
    if not _in_notebook():
        print(line, file=sys.stderr, flush=True)


KERNEL_ENVIRONMENT = {
    # glibc otherwise maps and unmaps large activations at every step, which costs more than computing them.
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "500000000",
    # Threads that wait by spinning take the processor from the one they wait for, on any machine that does other work.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TF_CPP_MIN_LOG_LEVEL": "2", "TQDM_MININTERVAL": "30", "PAPERLIB_PROGRESS": "plain",
    "PAPERLIB_WIDGETS": "0",  # nobody is there to turn a slider, also where JupyterLab's kernel started us
}
