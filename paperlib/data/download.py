"""One file from a public host: continued where it broke off, checked against a pinned hash, under its name when whole.

Hosts are slow and often down, answer with pages of HTML, or send less or more than they announced; whatever comes is
believed only when its SHA-256 is the expected one.
"""

import errno
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from paperlib.errors import UserError
from paperlib.files import explain, sha256_file

RETRIES, TIMEOUT = 4, 30.0
"""Attempts at one file, and seconds without data after which an attempt ends; each continues the one before."""


Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in all."""


def download(url: str, path: Path, size: int | None, sha256: str, progress: Progress | None = None, *, host: str = "",
             place: str = "PAPERLIB_CACHE") -> None:
    """Fetch a file as `fetch` does, or say why not and how to get it by hand.

    Raises:
        UserError: the host cannot be reached or refuses, the disk is too small, or the bytes are wrong (they are
            deleted); the message names URL, bytes and destination.
    """
    if problem := fetch(url, path, size, sha256, progress, host=host, place=place):
        announced = f"{size} bytes" if size else "the file"
        raise UserError(f"cannot download {url} ({announced}) to {path}: {problem}. Try again later, or fetch it by "
                        f"hand: wget -c {url} -O {path}; {f'{size} bytes, ' if size else ''}SHA-256 {sha256}.")


def fetch(url: str, path: Path, size: int | None, sha256: str, progress: Progress | None = None, *,
          largest: int = 64_000_000, host: str = "", place: str = "PAPERLIB_CACHE", retries: int | None = None,
          timeout: float = TIMEOUT, digest: Callable[[Path], str] = sha256_file) -> str:
    """Fetch a file, continuing a partial download (`<name>.part`), and check it.

    Args:
        size: its bytes; None where only the host knows them.
        largest: bytes after which a file of unknown size is cut off: it cannot be that one.
        host: the environment variable that names another host, for messages.
        place: what names another place for the file, for messages.
        retries: attempts, instead of `RETRIES`.
        timeout: seconds without data after which an attempt ends.
        digest: what is held against `sha256`: that of the bytes, or of what they stand for.

    Returns:
        "" when the file is there, else in a few words why not; what came of it is kept, unless it is wrong.

    Raises:
        UserError: the file cannot be written, or the address is none.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path.parent, place=place) from error
    need = (size or 0) - _there(part)
    if shutil.disk_usage(path.parent).free < need:
        raise UserError(f"{url} needs {need} bytes in {path.parent}, and fewer are free. Free some, or set {place} to "
                        "a larger disk.")
    problem = ""
    for attempt in range(retries or RETRIES):
        time.sleep(min(2 ** (attempt - 1), 5) if attempt else 0)
        try:
            problem = _continue(url, part, size, largest, timeout, progress)
            break
        except urllib.error.HTTPError as error:
            problem = f"the host answered {error.code} {error.reason}"
            if error.code == 416 and size is None:  # nothing is missing
                problem = ""
            if error.code < 500:
                break
        except (ValueError, http.client.InvalidURL) as error:
            raise UserError(f"{url!r} is no address ({error}). Correct {host or 'it'}.") from error
        except http.client.HTTPException as error:
            problem = f"{type(error).__name__} {error}"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS) and not isinstance(
                    error, urllib.error.URLError):
                raise explain(error, part, place=place) from error
            reason = getattr(error, "reason", error)
            problem = getattr(reason, "strerror", None) or str(reason)
    if problem:
        return f"{problem}; {_there(part)} bytes of it are kept" if _there(part) else problem
    if (found := digest(part)) != sha256:
        with part.open("rb") as file:
            page = " (a web page)" if file.read(64).lstrip().startswith(b"<") else ""
        part.unlink()
        return f"it gave wrong bytes{page}, SHA-256 {found}, expected {sha256}; they are deleted"
    part.replace(path)
    return ""


def _there(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, size: int | None, largest: int, timeout: float, progress: Progress | None) -> str:
    """One attempt: append what is missing to `part`; starts over where the host cannot continue.

    Gives "", or why no other attempt can help.
    """
    have, limit = _there(part), size or largest
    if have > limit:
        part.unlink()
        have = 0
    if have == size:
        return ""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        left = answer.headers.get("Content-Length", "")
        if answer.status == 206 and not _continues(answer.headers.get("Content-Range"), have, size):
            part.unlink(missing_ok=True)  # the next attempt asks for the whole file
            raise OSError("the host continues elsewhere than where it was asked to")
        if answer.status != 206:
            have = 0
            if size and left.isdecimal() and int(left) != size:
                return f"the host announces {left} bytes, not the {size} of this file"
        total = size or have + (int(left) if left.isdecimal() else 0)
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(1 << 20):
                file.write(block[: limit - have])
                have += len(block)
                if have > limit:  # whatever comes, it is not that file
                    break
                if progress:
                    progress(have, max(have, total))
    if have > limit:
        part.unlink()
        return f"it gave more than the {limit} bytes of this file, which are deleted"
    if have < total:
        if answer.status != 206 and not left:  # an answer of unknown length: no beginning of the file
            part.unlink()
        raise OSError(f"the connection ended after {have} of {total} bytes")
    return ""


def _continues(content_range: str | None, have: int, size: int | None) -> bool:
    """Whether a `Content-Range` ("bytes 100-499/500") begins at `have`, in a file of that size."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range or "")
    return bool(found) and int(found[1]) == have and found[2] in ("*", str(size or found[2]))
