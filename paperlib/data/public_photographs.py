"""Photographs that anyone may fetch, by list, from their public repositories (paper section 4 has DIV2K).

`open.csv`, for training: 51 pictures in 4K of four wallpaper collections, reduced to at most 2,040 pixels so that
neither their noise nor their JPEG blocks are learnt: turned by EXIF, RGB, Lanczos by min(1/1.5, 2040 / longer side),
JPEG of quality 95 with full colour. An original is believed when its SHA-256 is the listed one. The reduced file has
the listed SHA-256 where Pillow and its JPEG library give the same bytes as where the list was made; elsewhere it is
kept and said to differ.

`cid22.csv`, for training, and `clic_val.csv`, for validation: lossless files, kept as they come; one is believed when
the SHA-256 of its pixels, RGB in rows, is the listed one, so that another compression of the same pixels passes.

The hosts were out of reach where this was written: the lists' hashes are those of the files at hand, and no address
has been asked yet.
"""

import csv
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageOps

from paperlib.data.download import fetch
from paperlib.data.images import load_image
from paperlib.errors import UserError
from paperlib.files import atomic_path, check_folder, read_json, sha256_file, write_json

RAW = "https://raw.githubusercontent.com"
SETS = ("open", "cid22", "clic_val")
"""What can be fetched: names of lists, and of their folders."""
LISTS = Path(__file__).parent
LONGEST, REDUCED = 2040, 1 / 1.5
"""Pixels of the longer side, and the factor, that a photograph is reduced to at least."""
QUALITY = 95
SAME = 3
"""Equal failures at the start after which the host counts as out of reach."""
MADE = "made_here.json"
"""In the folder: reduced files whose bytes are not the listed ones → their SHA-256."""


@dataclass(frozen=True)
class Photograph:
    """A line of a list: `size` is that of the file that is kept, "width × height" with an x.

    It has either the hashes of original and reduced file, or that of the pixels of a file that is kept as it comes.
    """

    file: str
    repository: str
    path: str
    licence: str
    size: str
    original_sha256: str = ""
    reduced_sha256: str = ""
    commit: str = "HEAD"
    pixels_sha256: str = ""

    @property
    def url(self) -> str:
        """Where the original is; without a commit on the default branch, where its hash says whether it is still it."""
        return f"{RAW}/{self.repository}/{self.commit}/{urllib.parse.quote(self.path)}"


def listed(name: str = "open") -> list[Photograph]:
    """The photographs of a list of `SETS`.

    Raises:
        UserError: a name in it is none for a file in one folder.
    """
    path = LISTS / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        photographs = [Photograph(**line) for line in csv.DictReader(file)]
    for photograph in photographs:
        if Path(photograph.file).name != photograph.file or ".." in photograph.path.split("/"):
            raise UserError(f"{path} names {photograph.file!r}, which is no plain name. Restore the list with git.")
    return photographs


def pixels_sha256(path: Path) -> str:
    """SHA-256 of a picture's pixels as RGB of 8 bits, in rows from the top; says why not where it is no picture."""
    try:
        return sha256(load_image(path).convert("RGB").tobytes()).hexdigest()
    except UserError as error:
        return f"none ({error})"


def reduce_photograph(original: Path, target: Path) -> None:
    """Write the reduced JPEG file of a photograph, atomically.

    Raises:
        UserError: the original cannot be read, or the target not be written.
    """
    image = ImageOps.exif_transpose(load_image(original)).convert("RGB")
    factor = min(REDUCED, LONGEST / max(image.size))
    size = tuple(round(length * factor) for length in image.size)
    with atomic_path(target) as temporary:
        image.resize(size, Image.Resampling.LANCZOS).save(temporary, format="JPEG", quality=QUALITY, subsampling=0)


def fetch_photographs(folder: Path, photographs: Sequence[Photograph], tell: Callable[[str], None] = print
                      ) -> list[str]:
    """Bring photographs into a folder; what is there is kept, and one that cannot be had never ends the others.

    Originals that are reduced lie there one at a time and are deleted afterwards.

    Returns:
        One line for each photograph that could not be had.

    Raises:
        UserError: the folder cannot be written.
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
                reduce_photograph(original, target)
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
