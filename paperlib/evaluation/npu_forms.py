"""What forms of the student's graph cost on an NPU, and where the paper's student would have stood (section 7).

Forms of the skip: `add` (the paper's), `exact` (ours, a concatenation), `plain` (ETDS's finding carried to its end: a
chain of convolutions alone). Forms of PixelShuffle: `depth_to_space` and `rows`. Vela's cycles depend on shapes, so the
weights here are random; milliseconds of another device are scaled from them, with the assumptions in each line.
"""

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from paperlib.evaluation.authors import FILES, authors_folder
from paperlib.evaluation.reported import OURS, entries, score
from paperlib.export.convert import export_tflite, parity_images
from paperlib.export.npu import estimate_npu
from paperlib.quantisation.int8 import IMAGE_GRID, QuantisedGraph, channel_scales, qparam_owners
from paperlib.quantisation.qat import prepare_qat, quantised_graph
from paperlib.settings import QuantSettings, StudentSettings
from paperlib.student.graph import Graph, Node, macs_per_lr_pixel
from paperlib.student.models import build_model

CARRIED, PATCH = 4, 28
"""Channels of the plain form that pass the image through the blocks (three colours and one that is 255 inside), and
that the last block lays out as the 3×3 patch which the head reads."""
TRANSPOSE_SHARES = (0.0, 0.5, 0.9)
"""Assumed shares of the 6-D transpose in the submitted file's 41.1 ms; Vela leaves it to the CPU, untimed, on
Ethos-U65, and on an Ethos-U85 it takes nine tenths of all cycles."""


def plain_graph(settings: StudentSettings) -> Graph:
    """A chain of convolutions of the widths that carry the image past every block, so that no skip is needed.

    Identity kernels can pass pixels on exactly (they are never negative, so ReLU lets them through) as long as every
    map lies on the image's grid; the function is that of the exact skip. Random weights: this is to be costed.
    """
    width = settings.channels
    widths = [3, PATCH, *[width + CARRIED] * (settings.blocks - 1), width + PATCH, 27]
    nodes, last = [Node("input", "input")], len(widths) - 2
    for index, (narrow, wide) in enumerate(pairwise(widths)):
        weight = torch.randn(wide, narrow, 3, 3) / (3 * narrow**0.5)
        nodes.append(Node(f"conv.{index}", "conv", (nodes[-1].name,), weight, torch.zeros(wide),
                          relu=0 < index < last))
    nodes += [Node("shuffle", "depth_to_space", (nodes[-1].name,)), Node("output", "clamp", ("shuffle",))]
    return Graph(tuple(nodes))


def forms(settings: StudentSettings | None = None) -> dict[str, QuantisedGraph]:
    """The student's quantised graph by form of the skip, with random weights."""
    settings = settings or StudentSettings()
    torch.manual_seed(0)
    fused, plain = build_model(settings, "fused", clamp=True), plain_graph(settings)
    made = {skip: quantised_graph(prepare_qat(fused, QuantSettings(quantiser="tflite", skip=skip),
                                              parity_images(1, 32))) for skip in ("add", "exact")}
    scales = {node.name: channel_scales(node.weight) for node in plain.nodes if node.weight is not None}
    grids = dict.fromkeys(qparam_owners(plain).values(), IMAGE_GRID)
    return made | {"plain": QuantisedGraph(plain, grids, scales, "tflite")}


def npu_forms(
    height: int = 720, width: int = 1280, accelerators: tuple[str, ...] = ("ethos-u65-512", "ethos-u85-2048"),
    settings: StudentSettings | None = None,
) -> list[dict[str, Any]]:
    """Vela's cycles of every form of skip and PixelShuffle, and of the authors' submitted file where it is at hand.

    Returns:
        Per form and accelerator: `skip`, `upsample`, `accelerator`, `macs_per_lr_pixel`, `cycles_per_lr_pixel`
        (operators on the NPU alone), `left_to_cpu` (names), `dram_bytes_per_lr_pixel`.

    Raises:
        UserError: Vela is not installed.
    """
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        files = {(skip, upsample): (export_tflite(qgraph, Path(folder) / f"{skip}_{upsample}.tflite", height, width,
                                                  upsample), macs_per_lr_pixel(qgraph.graph), height * width)
                 for skip, qgraph in forms(settings).items() for upsample in ("depth_to_space", "rows")}
        if found := authors_folder():
            files["add", "reshape and transpose (submitted)"] = (found / FILES["fixed_int8"], 82_368, 720 * 1280)
        for (skip, upsample), (path, macs, pixels) in files.items():
            for accelerator in accelerators:
                estimate = estimate_npu(path, accelerator)
                lines.append({
                    "skip": skip, "upsample": upsample, "accelerator": accelerator, "macs_per_lr_pixel": macs,
                    "cycles_per_lr_pixel": estimate["cycles_total"] / pixels, "left_to_cpu": estimate["cpu_operators"],
                    "dram_bytes_per_lr_pixel": estimate["dram_bytes"] / pixels})
    return lines


def standing(lines: list[dict[str, Any]], gain_db: float = 0.04, accelerator: str = "ethos-u65-512") -> list[dict]:
    """Where the paper's student would have stood with a file of ours: an estimate, assumption by assumption.

    The submitted file took 41.1 ms at 29.79 dB. Assumed: its convolutions take the share of that time which is not the
    transpose's; the phone's NPU ranks forms as Vela does on `accelerator`; a form that stays on the NPU costs nothing
    outside it.

    Args:
        lines: of `npu_forms`, the authors' file among them; without it there is nothing to scale from.
        gain_db: what keeping the learnt ranges gave over the authors' own file, on Set14 and B100 (0.11 dB on Set5).
            The exact skip was trained otherwise, so its own gain is not counted.

    Returns:
        Per form and `transpose_share`: `ms`, `score`, `place` among the entries of Table A (1 is best).
    """
    at = {(line["skip"], line["upsample"]): line for line in lines if line["accelerator"] == accelerator}
    submitted = next((line for (_, upsample), line in at.items() if "submitted" in upsample), None)
    if submitted is None:
        return []
    psnr, ms = entries()[OURS]
    others = [score(*entry) for name, entry in entries().items() if name != OURS]
    found = []
    for (skip, upsample), line in at.items():
        if line["left_to_cpu"] or line is submitted:
            continue
        ratio = line["cycles_per_lr_pixel"] / submitted["cycles_per_lr_pixel"]
        for share in TRANSPOSE_SHARES:
            time = ms * (1 - share) * ratio
            value = score(psnr + gain_db, time)
            found.append({"skip": skip, "upsample": upsample, "transpose_share": share, "ms": time, "psnr": psnr
                          + gain_db, "score": value, "place": 1 + sum(other > value for other in others)})
    return found
