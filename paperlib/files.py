"""Files that are never half written: atomic writes, locks, hashes, errors that name their cause.

What is written first under another name is called `.paperlib-…`. Nothing else is ever swept.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from paperlib.errors import UserError

TEMPORARY = ".paperlib-"
"""How the names of temporary files and folders begin."""


def explain(
    error: OSError, path: str | Path, action: str = "write", place: str = "--out",
) -> UserError:
    """An operating-system error about `path` as a sentence with its cause and its remedy.

    Args:
        action: "write" or "read".
        place: the option or variable that chooses another folder.
    """
    other = f"choose another folder with {place}" if action == "write" else "name another file"
    remedy = {
        errno.ENOSPC: f"Free some space or {other}",
        errno.EDQUOT: f"Free some space or {other}",
        errno.EACCES: f"Make it {action}able for this user, or {other}",
        errno.EPERM: f"Make it {action}able for this user, or {other}",
        errno.ENAMETOOLONG: "Give it a shorter name",
        errno.ELOOP: "The link leads to itself: remove it",
    }.get(error.errno, other[0].upper() + other[1:])
    return UserError(f"cannot {action} {path}: {error.strerror or error}. {remedy}.")


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """The one net under foreign files: whatever their reader raises names the file, in one line.

    Only the reading stands in the block, never work on what was read.

    Args:
        what: what the file should be, with its article: "a TFLite file".
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no file at {path}. Name an existing one.") from error
    except Exception as error:  # a damaged file can make its reader raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise explain(error, path, "read") from error
        first = (str(error).strip().splitlines() or [""])[0][:150]
        reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
        raise UserError(
            f"{path} is not {what} that can be read ({reason}). Name another file.") from error


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, `~` expanded; names that no file can have are a `UserError`."""
    if not str(text):
        raise UserError("an empty name is no file or folder. Write . for the current folder.")
    try:
        path = Path(text).expanduser()
        path.stat()
    except (RuntimeError, ValueError) as error:  # an unknown user, a byte that no name can hold
        raise UserError(f"{str(text)!r} is no file name ({error}). Name another file.") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise explain(error, path, "read") from error
    return path


@contextmanager
def explained(path: str | Path, action: str = "write", place: str = "--out") -> Iterator[None]:
    """For the block, errors of the operating system are told as `explain` does."""
    try:
        yield
    except OSError as error:
        raise explain(error, path, action, place) from error


@contextmanager
def atomic_path(path: str | Path, place: str = "--out") -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it becomes `path` when the block ends well.

    The data is on the disk before the rename: after a crash `path` is the old file or the new one.
    """
    path = Path(path)
    with explained(path, place=place):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}"
        try:
            temporary.touch(exist_ok=False)  # here, so that no signal can come before `finally`
            yield temporary
            with suppress(OSError):  # libraries put their own file there; some systems refuse
                temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path, place: str = "--out") -> None:
    """Make a folder and write a byte into it, before hours of work go there."""
    with explained(folder, place=place):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:  # full disks take empty files
            file.write(b"x")


def _is_old(path: Path) -> bool:
    """Whether it is of an hour ago, so nobody writes it, or as far in the future: the clock went
    back since."""
    return abs(time.time() - path.stat().st_mtime) > 3600


def remove_stale(folder: str | Path, below: bool = True) -> list[Path]:
    """Delete temporary files that killed processes left in `folder`, and below; return them."""
    pattern = f"{'**/' if below else ''}{TEMPORARY}*"
    stale = []
    for path in Path(folder).glob(pattern):
        with suppress(FileNotFoundError):  # another process has just renamed it
            if path.is_file() and not path.is_symlink() and _is_old(path):
                path.unlink()
                stale.append(path)
    return stale


def _lock(file: IO[bytes]) -> None:
    """Lock an open file without waiting; where there are no locks (Lustre), one line says so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        warnings.warn(f"the file system of {file.name} has no locks, so none is held: run one "
                      "command at a time there", stacklevel=2)


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody builds in this folder any more: its lock is free, or it has none for long."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except FileNotFoundError:
        return folder.is_dir() and _is_old(folder)
    except OSError:  # held, or somebody else's
        return False


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent`, locked for the block; what killed processes left is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{TEMPORARY}*"):
        if left.is_dir() and not left.is_symlink() and _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        with (folder / ".new").open("wb") as lock:
            _lock(lock)
            (folder / ".new").rename(folder / ".lock")  # nobody sees a lock that is free
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """A `temporary_folder` beside `target`, which takes its place when the block ends well."""
    with temporary_folder(target.parent) as building:
        yield building
        (building / ".lock").unlink()
        old = building.with_name(f"{building.name}.old")
        if target.exists():  # a damaged one, or another process was first
            target.rename(old)
        building.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str, place: str = "--out") -> Path:
    """Write UTF-8 atomically, bytes of names that are no UTF-8 as JSON's `\\udcff`."""
    with atomic_path(path, place) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


_NUMBERS = re.compile(r"\[\n\s*((?:-?\d[^,\n]*|null)(?:,\n\s*(?:-?\d[^,\n]*|null))*)\n\s*\]")
"""A list of numbers alone as `json` indents it; no string in JSON holds a line break."""


def write_json(path: str | Path, value: object, place: str = "--out") -> Path:
    """Write indented JSON atomically, lists of numbers on one line each (a third of the bytes)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    line = lambda found: f"[{', '.join(map(str.strip, found[1].split(',')))}]"
    return write_text(path, _NUMBERS.sub(line, text) + "\n", place)


def read_json(path: str | Path) -> Any:
    """What a JSON file of this kit holds; a damaged one is a `UserError`."""
    try:
        with explained(path, "read"):
            return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). "
                        "Delete it and try again.") from error


def shown(text: str) -> str:
    """Text for a terminal: line breaks, control characters and bytes that are no UTF-8 escaped."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode()
                   for mark in text)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(path: str | Path, place: str = "--out") -> Iterator[None]:
    """Hold an exclusive lock on `path`; the operating system frees it when the process dies.

    Raises:
        UserError: another living process holds the lock; its process id is named.
    """
    path = Path(path)
    with ExitStack() as stack:
        with explained(path, place=place):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab", buffering=0))
            try:
                _lock(file)
            except BlockingIOError:
                owner = path.read_text(encoding="utf-8") or "unknown"
                raise UserError(f"{path.parent} is in use by process {owner}. Wait for it, stop "
                                f"it, or choose another {place}.") from None
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


Progress = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""
