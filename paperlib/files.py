"""Files that are never half written: atomic writes, hashes, locks and the places paperlib looks in."""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paperlib.errors import UserError


def _explain(error: OSError, path: Path) -> UserError:
    """Turn an operating-system error about `path` into a sentence with a remedy."""
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}. Free some space or choose a writable folder with --out.")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; rename it to `path` when the block ends without error.

    The data is flushed to disk before the rename, so after a crash `path` is either the old file or the new one.

    Raises:
        UserError: the folder cannot be created or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:80]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        Path(name).chmod(0o644)
    except OSError as error:
        raise _explain(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(folder: str | Path, older_than: float = 3600.0) -> list[Path]:
    """Delete what killed processes left of `atomic_path` below `folder`, and return it; `older_than` in seconds.

    A temporary file younger than that may belong to a process that is still writing.
    """
    named = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+)?")
    stale = [path for path in Path(folder).rglob(".*") if named.fullmatch(path.name) and path.is_file()
             and time.time() - path.stat().st_mtime > older_than]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def writable_folder(folder: Path) -> None:
    """Make a folder and check that it takes files, before hours of work go into it.

    Raises:
        UserError: it does not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}. Choose another folder.") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically. Returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: object) -> Path:
    """Write `value` as indented JSON with a final newline, atomically. Returns the path."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(path: str | Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the block; the operating system frees it when the process dies.

    Raises:
        UserError: another living process holds the lock; its process id is named.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise _explain(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            message = f"{path.parent} is in use by process {owner}. Wait for it, stop it, or choose another --out."
            raise UserError(message) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


Progress = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""
