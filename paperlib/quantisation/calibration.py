"""Activation ranges from example images (paper section 5): least squared rounding error, or plain minimum and maximum.

A range that covers the rarest peak wastes steps on it; one that clips too much burns highlights. For every tensor the
range with the least mean squared error over the examples is searched between half and all of what was seen.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from paperlib.quantisation.int8 import EPS, IMAGE_GRID, QMAX, QMIN, QParams, qparam_owners
from paperlib.student.graph import Graph, Node, image_batch, run_graph

SAMPLES = 8192
"""Values kept of each tensor and image for the search; minimum and maximum are of all values."""
SHRINK = torch.linspace(0.3, 1.0, 29)
"""Fractions of the seen extremes that are tried."""


def grid_of_range(low: float, high: float) -> QParams:
    """The int8 grid that covers low … high and has 0 on it (zero padding and ReLU need an exact 0)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (QMAX - QMIN), EPS)
    return QParams(scale, int(np.clip(round(QMIN - low / scale), QMIN, QMAX)))


def best_grid(values: Tensor, low: float, high: float) -> QParams:
    """The grid with the least mean squared error on `values` (1-D), its range inside low … high."""
    grids = {grid_of_range(a * low, b * high)
             for b in SHRINK.tolist() for a in (SHRINK[::4].tolist() if low < 0 else [0.0])}
    errors = {grid: float((grid.fake(values) - values).square().mean()) for grid in grids}
    return min(errors, key=lambda grid: (errors[grid], grid.scale))


@torch.no_grad()
def seen_values(graph: Graph, images: Iterable[np.ndarray | Tensor]) -> dict[str, tuple[Tensor, float, float]]:
    """Per grid (its owner's name): a sample of its float values, their minimum and maximum over all images."""
    owners = qparam_owners(graph)
    kept: dict[str, list[Tensor]] = {}
    extremes: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)

    def after(node: Node, out: Tensor) -> Tensor:
        name, flat = owners[node.name], out.reshape(-1)
        picks = torch.randint(flat.numel(), (min(SAMPLES, flat.numel()),), generator=generator)
        kept.setdefault(name, []).append(flat[picks])
        low, high = torch.aminmax(flat)
        extremes.setdefault(name, []).extend((float(low), float(high)))
        return out

    for image in images:
        run_graph(graph, image_batch(image), after=after)
    return {name: (torch.cat(parts), min(extremes[name]), max(extremes[name])) for name, parts in kept.items()}


def calibrate(graph: Graph, images: Sequence[np.ndarray | Tensor]) -> dict[str, QParams]:
    """A grid for every tensor that owns one; image and result always lie on 8-bit pixels.

    Args:
        images: uint8 (h, w, 3) photographs or (B, 3, h, w) batches in 0..255.
    """
    owners = qparam_owners(graph)
    grids = {}
    for name, (values, low, high) in seen_values(graph, images).items():
        grids[name] = best_grid(values, low, high)
    return grids | {owners[graph.nodes[0].name]: IMAGE_GRID, owners[graph.nodes[-1].name]: IMAGE_GRID}
