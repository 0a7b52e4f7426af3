"""One self-contained HTML page that enlarges pictures in a browser, offline (paper section 7).

LiteRT.js (Apache-2.0), fetched by npm when the page is built, lies in the page with the fixed uint8
form of the student. The page contacts nothing: its security policy forbids it.
"""

import base64
import gzip
import hashlib
import html
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from paperlib.environment import cache_dir, root
from paperlib.errors import UserError
from paperlib.export.convert import export_tflite, shipped_graph
from paperlib.files import sha256_file, write_text
from paperlib.student.graph import receptive_radius

VERSION = "2.5.3"
INTEGRITY = {
    "core":
        "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
    "wasm-utils":
        "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ=="}
"""Packages of @litertjs at `VERSION` and their SHA-512, as npm states it."""
BINARY = "litert_wasm_compat_internal"
"""Of the package's four builds the one without relaxed SIMD: the same pixels in every browser."""
TILE = 256  # LR pixels a side of the network's fixed input
SIDE, MEGAPIXELS = 3000, 4
"""Largest picture that the page takes; a browser holds the result, nine times it, several times."""


def fetch_litert() -> dict[str, Path]:
    """The packages' archives by name, from the cache or by `npm pack`, their hashes checked."""
    folder = cache_dir() / "litertjs"
    archives = {name: folder / f"litertjs-{name}-{VERSION}.tgz" for name in INTEGRITY}
    for name, archive in archives.items():
        if not archive.is_file():
            _pack(name, archive)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != INTEGRITY[name]:
            archive.unlink()
            raise UserError(f"{archive} is not @litertjs/{name} {VERSION}: its SHA-512 is "
                            f"{found[:16]}…, not {INTEGRITY[name][:16]}…. It was deleted; run "
                            "`paperlib page` again.")
    return archives


def _pack(name: str, archive: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the page needs @litertjs/{name}, which npm fetches, and there is no npm "
                        "here. Install it (Debian: apt install npm), or build the page on another "
                        "machine: it runs anywhere.")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as place:
        command = [npm, "pack", f"@litertjs/{name}@{VERSION}", "--pack-destination", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
        made = list(Path(place).glob("*.tgz"))
        if done.returncode or not made:
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            raise UserError(f"npm cannot fetch @litertjs/{name}@{VERSION} "
                            f"({(errors or ['no message'])[0].strip()}). Connect to the network "
                            "and run `paperlib page` again.")
        made[0].replace(archive)


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as file:
        return file.extractfile(f"package/{name}").read()


def _script(archives: dict[str, Path]) -> str:
    """LiteRT.js and its helper as one classic script: from `file://` no modules are imported."""
    modules = r"^(export \{[^}]*\};|import \{[^}]*\} from .*|//# sourceMappingURL=.*)$"
    return "\n".join(
        re.sub(modules, "", _member(archives[name], "dist/index.js").decode("utf-8"), flags=re.M)
        for name in ("wasm-utils", "core"))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def build_page(out: str | Path) -> Path:
    """Write the page for the bundled student; returns its path."""
    archives, qgraph = fetch_litert(), shipped_graph()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "student_fixed_uint8.tflite"
        model = export_tflite(qgraph, file, TILE, TILE, pixels="uint8")
        content, digest = model.read_bytes(), sha256_file(model)
    values = {
        "SIDE": str(SIDE), "MEGAPIXELS": str(MEGAPIXELS), "TILE": str(TILE),
        "OVERLAP": str(2 * receptive_radius(qgraph.graph)), "MODEL": model.name,
        "MODEL_SHA256": digest, "MODEL_DATA": base64.b64encode(content).decode(),
        "PACKAGES": ", ".join(f"@litertjs/{name} {VERSION}" for name in INTEGRITY),
        "LICENCE": html.escape((root() / "LICENSE").read_text(encoding="utf-8")),
        "LITERT": _packed(_script(archives).encode()),
        "LOADER": _packed(_member(archives["core"], f"wasm/{BINARY}.js")),
        "WASM": _packed(_member(archives["core"], f"wasm/{BINARY}.wasm"))}
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return write_text(out, re.sub(r"@@([A-Z_0-9]+)@@", lambda found: values[found[1]], text))
