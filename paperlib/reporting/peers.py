"""Public models of the student's size, on the same images by the same measure (`peers.csv`); who leads is read there.

A line of the table is one model, precision and image set: parameters, multiply-accumulates per LR pixel, PSNR in dB,
the LR pixels it was trained on (steps × batch × patch², where its authors tell), protocol, and where its weights are.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("peers.csv")
DIGITS = 3
"""Decimals of a PSNR here; some peers' are known to fewer."""


def _lines() -> list[dict[str, str]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def peer_points(dataset: str = "Set5") -> list[dict[str, Any]]:
    """Points for `scatter`: name, group, macs (thousands per LR pixel), psnr (dB, RGB, no crop)."""
    return [{"name": line["model"], "group": f"{line['group']}, {line['precision'].upper()}",
             "macs": float(line["macs_per_lr_pixel"]) / 1e3, "psnr": float(line["psnr_rgb"])}
            for line in _lines() if line["set"] == dataset]


def peers_sentence(ours: Mapping[str, float], largest: int = 100_000) -> str:
    """Which public INT8 files are ahead of ours or level, and where; the best first.

    Args:
        ours: image set → PSNR of our INT8 file (dB, RGB, no crop).
        largest: parameters up to which a file counts as of its size.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in _lines():
        if line["precision"] == "int8" and line["group"] == "peers" and int(line["parameters"]) <= largest:
            peer = found.setdefault(line["model"], {"size": int(line["parameters"]), "psnr": {}})
            peer["psnr"][line["set"]] = line["psnr_rgb"]
    start = f"Of {len(found)} public INT8 files of up to {largest // 1000}K parameters"
    ahead = []
    for name, peer in sorted(found.items(), key=lambda item: -sum(map(float, item[1]["psnr"].values()))):
        leads = {image_set: _lead(peer["psnr"][image_set], psnr) for image_set, psnr in ours.items()}
        words = [f"{word} on {_together(where, len(ours))}" for word in ("ahead", "level")
                 if (where := [image_set for image_set, lead in leads.items() if lead == word])]
        if words:
            values = " / ".join(peer["psnr"][image_set] for image_set in ours)
            ahead.append(f"{name} ({peer['size'] / 1000:.0f}K, {values}) {' and '.join(words)}")
    if not ahead:
        return f"{start}, none is ahead of it on any set."
    return f"{start}, ahead of it or level (PSNR RGB in dB on {' / '.join(ours)}): {'; '.join(ahead)}."


def _lead(theirs: str, ours: float) -> str:
    """Whether a peer's score, known to as many digits as it is written with, is above ours, level or behind."""
    digits = len(theirs.partition(".")[2])
    if round(ours, digits) == float(theirs) and digits < DIGITS:
        return "level"
    return "ahead" if float(theirs) > ours else "behind"


def _together(names: list[str], count: int) -> str:
    return "all" if len(names) == count else " and ".join([", ".join(names[:-1]), names[-1]][len(names) < 2 :])
