"""Damaged files through the real command line, counted: `python -m paperlib.benchmarks.hostile`.

Every command is a process of its own in a folder of its own. What it promises is checked afterwards (`broken`): it ends
with 0, 1 or 2, says one line a failure and never a traceback, leaves its inputs as they were, writes nothing outside of
its output folder, and a good picture among bad ones is enlarged. The counts go into `results/reference/hostile.json`.
"""

import argparse
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from paperlib.data.images import EXTENSIONS
from paperlib.environment import provenance, root
from paperlib.files import write_json
from paperlib.profiles import load_settings
from paperlib.settings import flatten
from paperlib.weights import pretrained

BATCH = 20
"""Pictures that one command is given."""
LONGEST = 600
"""Seconds after which a command counts as hanging: twenty pictures may be large, and the machine busy."""
WRITABLE = ("out", "cache", "home/.cache", "home/.config")
"""Where a command may write: its output, the kit's cache, and what libraries keep (matplotlib its fonts)."""
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2.5, 10**9, 10**30, "x", "", "32", [], {}, [1], {"a": 1}, float("nan"), float("inf"),
    "n" * 5000, "a\nb\x1b[31m", [[[]]], "<script>alert(1)</script>", "../../x", "/dev/zero")
"""Values that no field expects."""
MODES = ("RGB", "RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16", "F", "YCbCr")
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif", "PPM": ".ppm",
           "TGA": ".tga", "JPEG2000": ".jp2", "PDF": ".pdf", "EPS": ".eps", "ICO": ".ico"}
HEADS = (b"PK\x03\x04", b"\x80\x02}q\0.", b"\x1c\0\0\0TFL3", struct.pack("<Q", 2**63), struct.pack("<Q", 2**27),
         b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"II*\0", b"RIFF")
"""First bytes that promise another kind of file, or a length that is none."""


@dataclass(frozen=True)
class Case:
    """One command and the damaged files that it is given."""

    arguments: Sequence[str | Path]
    files: int
    good: str | None = None
    """A file that must be in the output folder whatever the others are."""
    report: bool = False
    """Its output is the list of what is missing, with exit code 1."""


def damaged(chance: random.Random, content: bytes) -> bytes:
    """`content` with bits turned, cut off, overwritten, exchanged, put before or after it."""
    data = bytearray(content or b"\0")
    kind = chance.choice(("bits", "bits", "cut", "zeros", "swap", "head", "tail", "word"))
    place, length = chance.randrange(len(data)), chance.choice((8, 500, 5000))
    if kind == "bits":
        reach = min(len(data), chance.choice((64, 2000, len(data))))
        for _ in range(chance.choice((1, 3, 10, 100))):
            data[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[chance.choice((0, 1, 8, 100, place, len(data) - 1)):]
    elif kind == "zeros":
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == "swap":
        data = data[place:] + data[:place]
    elif kind == "head":
        head = chance.choice(HEADS)
        data[: len(head)] = head
    elif kind == "tail":
        data += chance.randbytes(length)
    else:
        data[place : place + 4] = struct.pack("<i", chance.choice((0, -1, 1, 255, 65535, 2**31 - 1, -(2**31))))
    return bytes(data)


def odd_json(chance: random.Random, value: Any) -> Any:
    """A JSON value with one place of it removed, renamed or replaced by something odd."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key, what = chance.choice(list(value)), chance.random()
        rest = {name: inner for name, inner in value.items() if name != key}
        if what < 0.2:
            return rest
        if what < 0.3:
            return rest | {f"{key}x": value[key]}
        return rest | {key: chance.choice(ODD) if what < 0.6 else odd_json(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        return [*value[:place], odd_json(chance, value[place]), *value[place + 1 :]]
    return chance.choice(ODD)


def picture(chance: random.Random, photograph: Image.Image) -> tuple[str, bytes]:
    """Suffix and content of a small picture in some format and mode, most of them damaged."""
    width, height = chance.choice(((1, 1), (1, 60), (60, 1), (7, 9), (33, 47), (64, 64)))
    left, top = chance.randrange(photograph.width - width), chance.randrange(photograph.height - height)
    crop, kind = photograph.crop((left, top, left + width, top + height)), chance.choice(list(FORMATS))
    file = io.BytesIO()
    try:
        crop.convert(chance.choice(MODES)).save(file, kind)
    except (OSError, ValueError):  # that format has no such mode
        file = io.BytesIO()
        crop.save(file, kind)
    suffix = FORMATS[kind] if chance.random() < 0.8 else chance.choice(list(FORMATS.values()))
    return suffix, damaged(chance, file.getvalue()) if chance.random() < 0.8 else file.getvalue()


def pictures_case(chance: random.Random, folder: Path, photograph: Image.Image, count: int = BATCH) -> Case:
    """A batch of pictures, a good one among them, by the bicubic kernel."""
    for number in range(count):
        suffix, content = picture(chance, photograph)
        (folder / f"{number:02d}{suffix}").write_bytes(content)
    photograph.crop((0, 0, 30, 20)).save(folder / "good.png")
    return Case(["upscale", folder, "--out", folder.parent / "out", "--model", "bicubic"], count, "good_x3.png")


def tflite_case(chance: random.Random, folder: Path, photograph: Image.Image) -> Case:
    """The student's INT8 file, damaged."""
    (folder / "m.tflite").write_bytes(damaged(chance, pretrained("pretrained").read_bytes()))
    return _with_model(chance, folder, photograph, "m.tflite")


def _with_model(chance: random.Random, folder: Path, photograph: Image.Image, name: str) -> Case:
    pictures = folder / "pictures"
    pictures.mkdir()
    photograph.crop((0, 0, 30, 20)).save(pictures / "a.png")
    commands = {"upscale": ["upscale", pictures, "--out", folder.parent / "out", "--model", folder / name],
                "inspect": ["inspect", folder / name], "evaluate": ["evaluate", folder / name, "--hr", pictures]}
    return Case(commands[chance.choice(list(commands))], 1)


def safetensors_case(chance: random.Random, folder: Path, photograph: Image.Image) -> Case:
    """The student's float file: its header's fields replaced, its own description of itself, or its bytes."""
    content = pretrained("pretrained-float").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    what = chance.random()
    if what < 0.4:
        about = odd_json(chance, json.loads(header["__metadata__"]["paperlib"]))
        header["__metadata__"]["paperlib"] = json.dumps(about)
    elif what < 0.7:
        header = odd_json(chance, header)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + body
    (folder / "m.safetensors").write_bytes(damaged(chance, content) if what >= 0.7 else content)
    return _with_model(chance, folder, photograph, "m.safetensors")


def settings_case(chance: random.Random, folder: Path, photograph: Image.Image) -> Case:
    """Names and values that no setting has."""
    fields = [*flatten("", load_settings("smoke").model_dump(mode="json")), "", ".", "stage1", "a" * 5000, "a\nb"]
    several = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        value = chance.choice(("[" * 3000, "9" * 6000, "1e999", "~nosuchuser/x", "[1", json.dumps(chance.choice(ODD))))
        several.append(f"{chance.choice(fields)}{chance.choice(('=', '=', '=', ''))}{value}")
    profile = chance.choice(("smoke", "smoke", "demo", "paper", "Smoke", "../x"))
    return Case(["data", "status", "--profile", profile, "--set", *several], 1, report=True)


def tables_case(chance: random.Random, folder: Path, photograph: Image.Image) -> Case:
    """The committed demo's tables, one of them damaged."""
    tables = folder.parent / "out" / "tables"
    shutil.copytree(root() / "results" / "reference" / "demo" / "tables", tables)
    path = chance.choice(sorted(tables.glob("*.csv")))
    path.write_bytes(damaged(chance, path.read_bytes()))
    form = chance.choice(("text", "markdown", "latex"))
    return Case(["table", "--profile", "demo", "--out", folder.parent / "out", "--format", form], 1)


def corpus_case(files: Sequence[Path], folder: Path, photograph: Image.Image) -> Case:
    """A batch of other people's pictures as they are, and a good one."""
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"{number:02d}{path.suffix}")
    photograph.crop((0, 0, 30, 20)).save(folder / "good.png")
    return Case(["upscale", folder, "--out", folder.parent / "out", "--model", "bicubic"], len(files), "good_x3.png")


KINDS: dict[str, Callable[..., Case]] = {
    "pictures": pictures_case, "INT8 files (.tflite)": tflite_case, "checkpoints (.safetensors)": safetensors_case,
    "settings": settings_case, "tables": tables_case}


def everything(folder: Path) -> dict[str, str]:
    """Every file below a folder and the hash of its content."""
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def broken(case: Case, done: subprocess.CompletedProcess[str], before: dict[str, str], folder: Path) -> list[str]:
    """The promises that a command broke, in words; empty where it kept them all."""
    lines, after, found = [line for line in done.stderr.splitlines() if line.strip()], everything(folder), []
    writable = tuple(str(folder / place) for place in WRITABLE)
    if done.returncode not in (0, 1, 2):
        found.append(f"exit code {done.returncode}")
    if "Traceback" in done.stdout + done.stderr:
        found.append("traceback")
    if done.returncode == 2 and len(lines) != 1:
        found.append(f"{len(lines)} lines for one failure")
    if done.returncode == 1 and not case.report and not 1 <= len(lines) <= case.files:
        found.append(f"{len(lines)} lines for {case.files} files")
    if done.returncode == 1 and case.report and ("missing" not in done.stdout or lines):
        found.append("exit code 1 and nothing is missing")
    if any(not character.isprintable() for line in lines for character in line):
        found.append("characters that steer a terminal")
    found += [f"changed, made or removed {Path(path).relative_to(folder)}"
              for path in sorted(before.keys() | after.keys())
              if before.get(path) != after.get(path) and not path.startswith(writable)]
    if case.good and not (folder / "out" / case.good).is_file():
        found.append("the good picture was not enlarged")
    return found


def run_case(make: Callable[[Path], Case]) -> dict[str, Any]:
    """One command in a folder of its own: {"files", "refused", "broken"}.

    Args:
        make: puts the command's files into the folder that it is given, which lies beside that of the output.
    """
    with tempfile.TemporaryDirectory(prefix="paperlib-hostile-") as name:
        folder = Path(name)
        for inner in ("in", "home", "work", "cache"):
            (folder / inner).mkdir()
        case = make(folder / "in")
        before = everything(folder)
        places = {"HOME": f"{name}/home", "PAPERLIB_CACHE": f"{name}/cache", "PYTHONPATH": str(root())}
        command = [sys.executable, "-B", "-m", "paperlib", *map(str, case.arguments)]
        try:
            done = subprocess.run(command, cwd=folder / "work", env=os.environ | places, capture_output=True, text=True,
                                  errors="replace", stdin=subprocess.DEVNULL, timeout=LONGEST, check=False)
        except subprocess.TimeoutExpired:
            return {"files": case.files, "refused": 0, "broken": [f"no end after {LONGEST} s"]}
        refused = len(done.stderr.splitlines()) if case.good else int(done.returncode != 0)
        return {"files": case.files, "refused": refused, "broken": broken(case, done, before, folder)}


def seeded(kind: str, seed: int, photograph: Image.Image) -> Callable[[Path], Case]:
    """A damaged case of a kind; the same seed makes the same files."""
    return lambda folder: KINDS[kind](random.Random(f"{kind} {seed}"), folder, photograph)


def run_all(path: Path, commands: int, seed: int, corpus: Path | None = None) -> Path:
    """`commands` of every kind one after the other, and all pictures below `corpus`; writes the record to `path`."""
    from skimage.data import astronaut

    photograph, counts, wrong = Image.fromarray(astronaut()), {}, []
    cases = [(kind, f"seed {number}", seeded(kind, number, photograph))
             for kind in KINDS for number in range(seed, seed + commands)]
    files = sorted(file for file in corpus.rglob("*") if file.suffix.lower() in EXTENSIONS) if corpus else []
    cases += [("pictures of other projects' tests", files[first].name,
               partial(corpus_case, files[first : first + BATCH], photograph=photograph))
              for first in range(0, len(files), BATCH)]
    for kind, label, make in cases:
        done, found = run_case(make), counts.setdefault(kind, {"commands": 0, "files": 0, "refused": 0, "wrong": 0})
        for name, value in (("commands", 1), ("files", done["files"]), ("refused", done["refused"]),
                            ("wrong", bool(done["broken"]))):
            found[name] += value
        if done["broken"]:
            wrong.append({"kind": kind, "case": label, "broken": done["broken"]})
        print(f"{kind}, {label}: {'; '.join(done['broken']) or found}", flush=True)
    corpora = sorted({file.relative_to(corpus).parts[0] for file in files}) if corpus else []
    return write_json(path, provenance() | {"seed": seed, "corpora": corpora, "kinds": counts, "wrong": wrong})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=root() / "results" / "reference" / "hostile.json")
    parser.add_argument("--commands", type=int, default=100, help="of every kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--corpus", type=Path, help="a folder of folders of other people's pictures, taken as they are")
    given = parser.parse_args()
    print(run_all(given.out, given.commands, given.seed, given.corpus))
