"""Files that are never half written: atomic writes, hashes, locks, and errors that name their cause."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paperlib.errors import UserError


def explain(error: OSError, path: str | Path, action: str = "write", place: str = "--out") -> UserError:
    """An operating-system error about `path` as a sentence with its cause and the remedy for that cause.

    Args:
        action: what could not be done: "write", "read".
        place: what the user sets to choose another folder: an option or a variable.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"Free some space or choose a folder on a larger disk with {place}."
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = (f"Make it {action}able for this user" + (f", or choose a writable folder with {place}."
                                                           if action == "write" else ", or name another file."))
    elif error.errno == errno.EROFS:
        remedy = f"Choose a writable folder with {place}."
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "Give it a shorter name."
    elif error.errno == errno.ELOOP:
        remedy = "The link leads to itself: remove it."
    elif action == "write":
        remedy = f"Choose another folder with {place}."
    else:
        remedy = "Name another file."
    return UserError(f"cannot {action} {path}: {reason}. {remedy}")


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """The one net under foreign files: whatever their reader raises becomes one line that names the file.

    Only the reading stands in the block, never work on what was read.

    Args:
        what: what the file should be, with its article: "a checkpoint of this kit", "a TFLite file".

    Raises:
        UserError: the file cannot be read as that; errors that are one already pass unchanged.
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
        raise UserError(f"{path} is not {what} that can be read ({reason}). Name another file.") from error


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, `~` expanded.

    Raises:
        UserError: the home of somebody who is not known here, a name too long, or a link that leads to itself.
    """
    path = Path(text)
    try:
        path = path.expanduser()
        path.stat()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user here. Write the folder out.") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no file name ({error}). Name another file.") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise explain(error, path, "read") from error
    return path


@contextmanager
def atomic_path(path: str | Path, place: str = "--out") -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; rename it to `path` when the block ends without error.

    The data is flushed to disk before the rename, so after a crash `path` is either the old file or the new one.

    Args:
        place: the option or variable that chooses another folder, for the message.

    Raises:
        UserError: the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:80]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise explain(error, path, place=place) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp, and safetensors which puts a file of its own there, let nobody else read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise explain(error, path, place=place) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Make a folder and check that it takes files, before hours of work go into it.

    Raises:
        UserError: it does not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_writing(folder)
    except ValueError as error:
        raise UserError(f"cannot write into {folder}: {error}. Choose another folder.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise explain(error, folder) from error
        raise UserError(f"cannot write into {folder}: {error.strerror or error}. Choose another folder.") from error


def try_writing(folder: Path) -> None:
    """Write a byte into an unnamed file of a folder (a full disk takes empty ones).

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(b"x")


def remove_stale(folder: str | Path, older_than: float = 3600.0) -> list[Path]:
    """Delete what killed processes left of `atomic_path` below `folder`, and return it; `older_than` in seconds.

    A temporary file younger than that may belong to a process that is still writing. One from a future as far away was
    left before the clock was set back.
    """
    named = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")
    stale = [path for path in Path(folder).rglob(".*") if named.fullmatch(path.name) and path.is_file()
             and abs(time.time() - path.stat().st_mtime) > older_than]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _abandoned(folder: Path, pid: int) -> bool:
    """Whether nobody builds in this folder any more: nobody holds its lock, and the process is gone or it is old."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no lock yet, or none of this version
        pass
    return not _alive(pid) or time.time() - folder.stat().st_mtime > 3600


@contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`; takes its place when the block ends without error, else it is removed.

    It is locked while its process lives, so that what killed processes left of it is known, and swept first.

    Raises:
        OSError: it cannot be made, or not be renamed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".*"):
        match = re.fullmatch(r"\..+\.(\d+)", left.name)
        if match and left.is_dir() and not left.is_symlink() and _abandoned(left, int(match[1])):
            shutil.rmtree(left, ignore_errors=True)
    building, old = (target.with_name(f".{target.name}.{kind}{os.getpid()}") for kind in ("", "old."))
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with (building / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield building
        (building / ".lock").unlink()
        if target.exists():  # a damaged one, or another process was first
            target.rename(old)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str, place: str = "--out") -> Path:
    """Write `text` as UTF-8, atomically; bytes of names that are no UTF-8 as JSON's `\\udcff`. Returns the path."""
    with atomic_path(path, place) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


_NUMBERS = re.compile(r"\[\n\s*((?:-?\d[^,\n]*|null)(?:,\n\s*(?:-?\d[^,\n]*|null))*)\n\s*\]")
"""A list of numbers alone as `json` indents it; no string in JSON holds a line break."""


def json_text(value: object) -> str:
    """`value` as indented JSON, lists of numbers on one line each (a third of a record's bytes are saved)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{', '.join(part.strip() for part in found[1].split(','))}]", text)


def write_json(path: str | Path, value: object, place: str = "--out") -> Path:
    """Write `value` as `json_text` with a final newline, atomically. Returns the path."""
    return write_text(path, json_text(value) + "\n", place)


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it may not be read, or is damaged (or nested too deep for any of ours).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}). Delete it and try again.") from error
    except OSError as error:
        raise explain(error, path, "read") from error


def shown(text: str) -> str:
    """Text for a terminal: names with line breaks, escapes or bytes that are no UTF-8 are printed escaped."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(path: str | Path, place: str = "--out") -> Iterator[None]:
    """Hold an exclusive lock on `path` for the block; the operating system frees it when the process dies.

    Args:
        place: the option or variable that chooses another folder, for the message.

    Raises:
        UserError: another living process holds the lock; its process id is named.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise explain(error, path, place=place) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            message = f"{path.parent} is in use by process {owner}. Wait for it, stop it, or choose another {place}."
            raise UserError(message) from None
        try:
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        except OSError as error:
            raise explain(error, path, place=place) from error
        yield


Progress = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""
