"""What a picture's file says beside its pixels, carried over to the enlarged one.

EXIF (the turn is applied and reset, place and rights stay), XMP, resolution, comments and texts,
and of PNG the chunks that say what its colours mean. A thumbnail, IPTC data and what the new format
cannot hold are left out.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

DESCRIPTIVE = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright",
               "XPTitle", "XPComment", "XPAuthor", "XPKeywords", "XPSubject", "Rating")
"""Tags of an image's first EXIF folder that say nothing of how its pixels are stored."""
COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"cICP")
"""Of PNG: brightness, primaries, and the code of a colour space, as of HDR."""
LONGEST = 65_000  # bytes that one piece may have: JPEG holds no more


@dataclass
class Metadata:
    """Metadata of one picture; empty fields where there are none."""

    exif: Image.Exif | None = None
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    comment: bytes = b""
    texts: dict[str, str] = field(default_factory=dict)
    chunks: dict[bytes, bytes] = field(default_factory=dict)


def read_metadata(image: Image.Image, path: Path, notes: list[str]) -> Metadata:
    """Metadata of an opened image; what of them is left out is added to `notes`."""
    info, found = image.info, Metadata()
    try:
        found.exif = _descriptive(image.getexif())
    except Exception:  # malformed EXIF can make its reader raise anything
        notes.append("its damaged EXIF is left out")
    xmp = info.get("xmp", b"")
    found.xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if len(found.xmp) > LONGEST:
        found.xmp = b""
        notes.append("its XMP is too large and left out")
    if 0x0404 in dict(info.get("photoshop") or {}):
        notes.append("its IPTC data are left out")
    dpi = info.get("dpi")
    if dpi and all(0 < value < 65_536 for value in dpi):
        found.dpi = tuple(float(value) for value in dpi)
    comment = info.get("comment", b"")
    found.comment = comment.encode() if isinstance(comment, str) else comment
    if image.format == "PNG":
        found.texts |= {name: str(text) for name, text in getattr(image, "text", {}).items()
                        if not name.startswith(("Raw profile", "XML:com.adobe.xmp"))}
        found.chunks = _colour_chunks(path)
    return found


def _descriptive(exif: Image.Exif) -> Image.Exif | None:
    """A copy with what describes the picture, or None where nothing does."""
    kept = Image.Exif()
    for name in DESCRIPTIVE:
        if (tag := ExifTags.Base[name]) in exif:
            kept[tag] = exif[tag]
    for place in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if below := exif.get_ifd(place):
            kept[place] = dict(below)
    if len(kept.tobytes()) > LONGEST:
        raise ValueError("larger than any format can hold")
    return kept if len(kept) else None


def _colour_chunks(path: Path) -> dict[bytes, bytes]:
    """Those of `COLOUR_CHUNKS` that a PNG file has before its pixels."""
    found = {}
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            data = file.read(struct.unpack(">I", head[:4])[0])
            file.read(4)
            if head[4:] in COLOUR_CHUNKS:
                found[head[4:]] = data
    return found


def save_options(metadata: Metadata, kind: str, size: tuple[int, int],
                 notes: list[str]) -> dict[str, Any]:
    """Options of Pillow's `save` that write metadata into a file of a kind.

    Args:
        size: width and height of the picture that is written, for EXIF.
        notes: gets what the kind cannot hold.
    """
    options: dict[str, Any] = {}
    exif = metadata.exif or Image.Exif()
    below = exif.get(ExifTags.IFD.Exif, {})
    for tag, pixels in zip((ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size,
                           strict=True):
        if tag in below:
            below[tag] = pixels
    if metadata.xmp and kind == "TIFF":
        exif[ExifTags.Base.XMLPacket] = metadata.xmp
    if len(exif) and kind != "BMP":
        options["exif"] = exif.tobytes()
    if kind == "TIFF" and (below or ExifTags.IFD.GPSInfo in exif):
        options["compression"] = "raw"  # libtiff, which packs, cannot write folders in folders
    if metadata.dpi and kind != "WEBP":
        options["dpi"] = metadata.dpi
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for name, text in metadata.texts.items():
            chunks.add_itxt(name, text)
        if metadata.comment:
            chunks.add_itxt("Comment", metadata.comment.decode("utf-8", "replace"))
        for name, data in metadata.chunks.items():
            chunks.add(name, data)
        if metadata.xmp:
            chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        return options | {"pnginfo": chunks}
    if metadata.chunks:
        names = ", ".join(name.decode() for name in metadata.chunks)
        notes.append(f"{kind} cannot say what its colours mean ({names}): they may look different")
    if metadata.xmp and kind in ("JPEG", "WEBP"):
        options["xmp"] = metadata.xmp
    if kind == "JPEG" and metadata.comment:
        options["comment"] = metadata.comment
    return options
