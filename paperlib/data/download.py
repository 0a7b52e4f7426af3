"""Files from public hosts, and the lists of photographs that anyone may fetch (DIV2K: `div2k`).

A file is continued where it broke off, believed only by its SHA-256, and under its name when whole.

`open.csv` (51 wallpapers in 4K) and `open_wallpapers.csv` (385 photographs of public repositories,
each pinned at a commit, with licence and author), for training, are reduced, so that neither noise
nor JPEG blocks are learned: turned by EXIF, RGB, Lanczos by min(1/1.5 or 1/2, 2040 / longer side),
JPEG of quality 95 with full colour. Where Pillow's JPEG library is another one than where the list
was made, the reduced files are kept and said to differ.

`cid22.csv`, for training, and `clic_val.csv`, for validation: lossless files, kept as they come and
believed by the SHA-256 of their pixels, so that another compression of the same pixels passes.
"""

import csv
import errno
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image

from paperlib.data.images import read_picture
from paperlib.errors import UserError
from paperlib.files import Progress, atomic_path, check_folder, explain, sha256_file

RETRIES, TIMEOUT = 4, 30.0  # attempts at a file; seconds without data after which one ends
LARGEST = 64_000_000  # bytes after which a file of unknown size is cut off
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def download(url: str, path: Path, size: int, sha256: str, progress: Progress | None = None,
             place: str = "PAPERLIB_CACHE") -> None:
    """Fetch a file as `fetch` does, or say why not and how to get it by hand (`UserError`)."""
    if problem := fetch(url, path, size, sha256, progress, place=place):
        raise UserError(f"cannot download {url} ({size} bytes) to {path}: {problem}. Try again "
                        f"later, or fetch it by hand: wget -c {url} -O {path}; {size} bytes, "
                        f"SHA-256 {sha256}.")


def fetch(url: str, path: Path, size: int | None, sha256: str, progress: Progress | None = None, *,
          place: str = "PAPERLIB_CACHE", retries: int | None = None,
          digest: Callable[[Path], str] = sha256_file) -> str:
    """Fetch a file, continuing a partial download (`<name>.part`), and check it.

    Args:
        size: its bytes; None where only the host knows them.
        place: the option or variable that chooses another folder, for messages.
        retries: attempts, instead of `RETRIES`.
        digest: what is held against `sha256`: that of the bytes, or of what they stand for.

    Returns:
        "" when the file is there, else in a few words why not; what came of it is kept, unless it
        is wrong. No address, and a disk that cannot take it, are a `UserError`.
    """
    check_folder(path.parent, place)
    part, problem = path.with_name(path.name + ".part"), ""
    for attempt in range(retries or RETRIES):
        time.sleep(min(2 ** (attempt - 1), 5) if attempt else 0)
        try:
            problem = _continue(url, part, size, progress)
            break
        except urllib.error.HTTPError as error:
            whole = error.code == 416 and size is None  # nothing is missing
            problem = "" if whole else f"the host answered {error.code} {error.reason}"
            if error.code < 500:
                break
        except (ValueError, http.client.InvalidURL) as error:
            raise UserError(f"{url!r} is no address ({error}). Correct it, or the variable "
                            "PAPERLIB_DIV2K_URL.") from error
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in FATAL:
                raise explain(error, part, place=place) from error
            reason = getattr(error, "reason", error)
            problem = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
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


def _continue(url: str, part: Path, size: int | None, progress: Progress | None) -> str:
    """One attempt: append what is missing to `part`, or start over where the host cannot continue;
    gives "", or why no other attempt can help."""
    have, limit = _there(part), size or LARGEST
    if have > limit:
        part.unlink()
        have = 0
    if have == size:
        return ""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        length = answer.headers.get("Content-Length", "")
        if answer.status != 206:
            have = 0
        elif not have or f"bytes {have}-" not in answer.headers.get("Content-Range", ""):
            part.unlink(missing_ok=True)  # the next attempt asks for the whole file
            raise OSError("the host continues elsewhere than where it was asked to")
        total = have + int(length) if length.isdecimal() else size or 0
        if size and total != size:
            return f"the host announces {total} bytes, not the {size} of this file"
        with part.open("ab" if have else "wb") as file:
            while have <= limit and (block := answer.read(1 << 20)):
                file.write(block)
                have += len(block)
                if progress:
                    progress(have, max(have, total))
    if have > limit:
        part.unlink()
        return f"it gave more than the {limit} bytes of this file, which are deleted"
    if have < total:
        if answer.status != 206 and not length:  # of unknown length: no beginning of the file
            part.unlink()
        raise OSError(f"the connection ended after {have} of {total} bytes")
    return ""


RAW = "https://raw.githubusercontent.com"
SETS = ("open", "open_wallpapers", "cid22", "clic_val")  # names of lists, and of their folders
SAME = 3  # equal failures at the start after which the host counts as out of reach


@dataclass(frozen=True)
class Photograph:
    """A line of a list, with the hashes of original and reduced file, or that of the pixels of a
    file that is kept as it comes."""

    file: str
    repository: str
    path: str
    licence: str
    size: str  # of the file that is kept, "600x400"
    original_sha256: str = ""
    reduced_sha256: str = ""
    commit: str = "HEAD"
    author: str = ""
    pixels_sha256: str = ""

    @property
    def url(self) -> str:
        """Where the original is."""
        return f"{RAW}/{self.repository}/{self.commit}/{urllib.parse.quote(self.path)}"

    def matches(self, path: Path) -> bool:
        """Whether a file holds the listed pixels, or of a reduced one the listed bytes."""
        if self.pixels_sha256:
            return pixels_sha256(path) == self.pixels_sha256
        return sha256_file(path) == self.reduced_sha256


def listed(name: str = "open") -> list[Photograph]:
    """The photographs of a list of `SETS`."""
    with Path(__file__).with_name(f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [Photograph(**line) for line in csv.DictReader(file)]


def pixels_sha256(path: Path) -> str:
    """SHA-256 of a picture's RGB pixels, in rows from the top, or why it is none."""
    try:
        return sha256(read_picture(path).rgb.tobytes()).hexdigest()
    except UserError as error:
        return f"none ({error})"


def reduce_photograph(original: Path, target: Path, size: tuple[int, int]) -> None:
    """Write a photograph as a JPEG file of (width, height), atomically."""
    image = Image.fromarray(read_picture(original).rgb).resize(size, Image.Resampling.LANCZOS)
    with atomic_path(target) as temporary:
        image.save(temporary, format="JPEG", quality=95, subsampling=0)


def fetch_photographs(
    folder: Path, photographs: Sequence[Photograph], tell: Callable[[str], None] = print,
) -> list[str]:
    """Bring photographs into a folder, where what is there is kept; gives a line for each that
    could not be had. Originals that are reduced are deleted afterwards."""
    check_folder(folder, "--to")
    counts = Counter(photograph.licence for photograph in photographs)
    licences = ", ".join(f"{count} × {name}" for name, count in counts.items())
    tell(f"{len(photographs)} photographs into {folder}: {licences}")
    failed, problems, there = [], [], 0
    for number, photograph in enumerate(photographs, 1):
        target = folder / photograph.file
        if target.is_file():
            there += 1
            continue
        lossless = photograph.pixels_sha256
        path = target if lossless else folder / f".{photograph.file}.original"
        problem = fetch(photograph.url, path, None, lossless or photograph.original_sha256,
                        place="--to", digest=pixels_sha256 if lossless else sha256_file)
        problems.append(problem)
        if problem:
            failed.append(f"cannot download {photograph.url}: {problem}")
            if len(problems) == SAME and len(set(problems)) == 1:
                failed.append(f"the first {SAME} failed alike, so {len(photographs) - number} more "
                              "were not tried.")
                break
            continue
        if not lossless:
            width, height = map(int, photograph.size.split("x"))
            try:
                reduce_photograph(path, target, (width, height))
            except UserError as error:
                failed.append(str(error))
                continue
            finally:
                path.unlink(missing_ok=True)
        tell(f"{number}/{len(photographs)} {photograph.file}, {photograph.size}")
    present = [one for one in photographs if (folder / one.file).is_file()]
    tell(f"{len(present)} of {len(photographs)} are in {folder}, {there} were there before")
    if other := [one.file for one in present if not one.matches(folder / one.file)]:
        tell(f"{len(other)} of them are in other bytes than the list's (another Pillow, or your "
             f"own): {', '.join(other[:3])}{', …' * (len(other) > 3)}")
    return failed
