"""Files from public hosts, and the lists of photographs that anyone may fetch (paper section 4 has
DIV2K, see `div2k`).

A file is continued where it broke off, checked against a pinned hash, and under its name when
whole. Hosts are slow and often down, answer with pages of HTML, or send less or more than they
announced; whatever comes is believed only when its SHA-256 is the expected one.

`open.csv`, for training: 51 pictures in 4K of four wallpaper collections, reduced to at most 2,040
pixels so that neither their noise nor their JPEG blocks are learnt: turned by EXIF, RGB, Lanczos by
min(1/1.5, 2040 / longer side), JPEG of quality 95 with full colour. An original is believed when
its SHA-256 is the listed one. The reduced file has the listed SHA-256 where Pillow and its JPEG
library give the same bytes as where the list was made; elsewhere it is kept and said to differ.

`open_wallpapers.csv`, for training: 385 photographs of further public repositories, each pinned at
a commit that has it, with its licence and author as the repository states them. They are reduced
like those of `open`, by min(1/2, 2040 / longer side), to 1,280 pixels or more on the longer side.

`cid22.csv`, for training, and `clic_val.csv`, for validation: lossless files, kept as they come;
one is believed when the SHA-256 of its pixels, RGB in rows, is the listed one, so that another
compression of the same pixels passes.
"""

import csv
import errno
import http.client
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageOps

from paperlib.data.images import load_image
from paperlib.errors import UserError
from paperlib.files import (
    Progress,
    atomic_path,
    check_folder,
    explain,
    read_json,
    sha256_file,
    write_json,
)

RETRIES, TIMEOUT = 4, 30.0
"""Attempts at one file, and seconds without data after which an attempt ends; each continues the
one before."""


def download(url: str, path: Path, size: int | None, sha256: str, progress: Progress | None = None, *, host: str = "",
             place: str = "PAPERLIB_CACHE") -> None:
    """Fetch a file as `fetch` does, or say why not and how to get it by hand.

    Raises:
        UserError: the host cannot be reached or refuses, the disk is too small, or the bytes are
            wrong (they are deleted); the message names URL, bytes and destination.
    """
    if problem := fetch(url, path, size, sha256, progress, host=host, place=place):
        announced = f"{size} bytes" if size else "the file"
        raise UserError(f"cannot download {url} ({announced}) to {path}: {problem}. Try again later, or fetch it by "
                        f"hand: wget -c {url} -O {path}; {f'{size} bytes, ' if size else ''}SHA-256 {sha256}.")


def fetch(url: str, path: Path, size: int | None, sha256: str, progress: Progress | None = None, *,
          largest: int = 64_000_000, host: str = "", place: str = "PAPERLIB_CACHE", retries: int | None = None,
          digest: Callable[[Path], str] = sha256_file) -> str:
    """Fetch a file, continuing a partial download (`<name>.part`), and check it.

    Args:
        size: its bytes; None where only the host knows them.
        largest: bytes after which a file of unknown size is cut off: it cannot be that one.
        host: the environment variable that names another host, for messages.
        place: what names another place for the file, for messages.
        retries: attempts, instead of `RETRIES`.
        digest: what is held against `sha256`: that of the bytes, or of what they stand for.

    Returns:
        "" when the file is there, else in a few words why not; what came of it is kept, unless it
        is wrong.
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
            problem = _continue(url, part, size, largest, progress)
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


def _continue(url: str, part: Path, size: int | None, largest: int,
              progress: Progress | None) -> str:
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
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
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


RAW = "https://raw.githubusercontent.com"
SETS = ("open", "open_wallpapers", "cid22", "clic_val")
"""What can be fetched: names of lists, and of their folders."""
LISTS = Path(__file__).parent
QUALITY = 95
SAME = 3
"""Equal failures at the start after which the host counts as out of reach."""
MADE = "made_here.json"
"""In the folder: reduced files whose bytes are not the listed ones → their SHA-256."""


@dataclass(frozen=True)
class Photograph:
    """A line of a list: `size` is that of the file that is kept, "width × height" with an x.

    It has either the hashes of original and reduced file, or that of the pixels of a file that is
    kept as it comes.
    """

    file: str
    repository: str
    path: str
    licence: str
    size: str
    original_sha256: str = ""
    reduced_sha256: str = ""
    commit: str = "HEAD"
    author: str = ""
    pixels_sha256: str = ""

    @property
    def url(self) -> str:
        """Where the original is; without a commit on the default branch, where its hash says
        whether it is still it."""
        return f"{RAW}/{self.repository}/{self.commit}/{urllib.parse.quote(self.path)}"


def listed(name: str = "open") -> list[Photograph]:
    """The photographs of a list of `SETS`."""
    path = LISTS / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        photographs = [Photograph(**line) for line in csv.DictReader(file)]
    for photograph in photographs:
        if Path(photograph.file).name != photograph.file or ".." in photograph.path.split("/"):
            raise UserError(f"{path} names {photograph.file!r}, which is no plain name. Restore the list with git.")
    return photographs


def pixels_sha256(path: Path) -> str:
    """SHA-256 of a picture's pixels as RGB of 8 bits, in rows from the top; says why not where it
    is no picture."""
    try:
        return sha256(load_image(path).convert("RGB").tobytes()).hexdigest()
    except UserError as error:
        return f"none ({error})"


def reduce_photograph(original: Path, target: Path, size: tuple[int, int]) -> None:
    """Write a photograph as a JPEG file of (width, height), atomically."""
    image = ImageOps.exif_transpose(load_image(original)).convert("RGB")
    with atomic_path(target) as temporary:
        image.resize(size, Image.Resampling.LANCZOS).save(temporary, format="JPEG", quality=QUALITY, subsampling=0)


def fetch_photographs(folder: Path, photographs: Sequence[Photograph], tell: Callable[[str], None] = print
                      ) -> list[str]:
    """Bring photographs into a folder; what is there is kept, and one that cannot be had never ends
    the others.

    Originals that are reduced lie there one at a time and are deleted afterwards.

    Returns:
        One line for each photograph that could not be had.
    """
    check_folder(folder)
    licences = ", ".join(f"{count} × {name}" for name, count in Counter(one.licence for one in photographs).items())
    tell(f"{len(photographs)} photographs into {folder}: {licences}")
    made = read_json(folder / MADE) if (folder / MADE).is_file() else {}
    failed, there, problems = [], 0, []
    for number, photograph in enumerate(photographs, 1):
        target = folder / photograph.file
        if target.is_file():
            if _is_there(target, photograph, made):
                there += 1
            else:
                failed.append(f"{target} is another file than the listed one. Delete it and fetch again.")
            continue
        if photograph.pixels_sha256:
            problem = fetch(photograph.url, target, None, photograph.pixels_sha256, digest=pixels_sha256, place="--to")
        else:
            original = folder / f".{photograph.file}.original"
            problem = fetch(photograph.url, original, None, photograph.original_sha256, place="--to")
        problems.append(problem)
        if problem:
            failed.append(f"cannot download {photograph.url}: {problem}")
            if len(problems) == SAME and len(set(problems)) == 1:
                failed.append(f"the first {SAME} failed alike, so {len(photographs) - number} more were not tried.")
                break
            continue
        if not photograph.pixels_sha256:
            try:
                width, height = photograph.size.split("x")
                reduce_photograph(original, target, (int(width), int(height)))
            except UserError as error:
                failed.append(str(error))
                continue
            finally:
                original.unlink(missing_ok=True)
            if (digest := sha256_file(target)) != photograph.reduced_sha256:
                made[photograph.file] = digest
                write_json(folder / MADE, made)
        tell(f"{number}/{len(photographs)} {photograph.file}, {photograph.size}")
    present = sum((folder / photograph.file).is_file() for photograph in photographs)
    tell(f"{present} of {len(photographs)} are in {folder}, {there} were there before"
         + (f"; {len(made)} of the same originals in other bytes than the list's (another Pillow)" if made else ""))
    return failed


def _is_there(target: Path, photograph: Photograph, made: dict[str, str]) -> bool:
    if photograph.pixels_sha256:
        return pixels_sha256(target) == photograph.pixels_sha256
    return sha256_file(target) in (photograph.reduced_sha256, made.get(photograph.file))
