"""Activation ranges from example images (paper section 5), by least squared rounding error.

For every tensor the range with the least mean squared error over the examples is searched between a
third and all of what was seen.
"""

import numpy as np
import torch
from torch import Tensor

from paperlib.quantisation.int8 import EPS, IMAGE_GRID, QMAX, QMIN, QParams, qparam_owners
from paperlib.student.graph import Graph, Images, Node, image_batch, run_graph

SAMPLES = 8192
"""Values kept of each tensor and image for the search; minimum and maximum are of all values."""
SHRINK = torch.linspace(0.3, 1.0, 29)
"""Fractions of the seen extremes that are tried."""


def grid_of_range(low: float, high: float) -> QParams:
    """The int8 grid that covers low … high, with an exact 0 for zero padding and ReLU."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (QMAX - QMIN), EPS)
    return QParams(scale, int(np.clip(round(QMIN - low / scale), QMIN, QMAX)))


def best_grid(values: Tensor, low: float, high: float) -> QParams:
    """The grid with the least mean squared error on `values` (1-D), its range inside low … high."""
    grids = {grid_of_range(a * low, b * high) for b in SHRINK.tolist()
             for a in (SHRINK[::4].tolist() if low < 0 else [0.0])}
    errors = {grid: float((grid.fake(values) - values).square().mean()) for grid in grids}
    return min(errors, key=lambda grid: (errors[grid], grid.scale))


@torch.no_grad()
def calibrate(graph: Graph, images: Images) -> dict[str, QParams]:
    """A grid for every tensor that owns one; image and result always lie on 8-bit pixels."""
    owners = qparam_owners(graph)
    kept: dict[str, list[Tensor]] = {name: [] for name in owners.values()}
    extremes: dict[str, list[float]] = {name: [] for name in kept}
    generator = torch.Generator().manual_seed(0)

    def after(node: Node, out: Tensor) -> Tensor:
        name, flat = owners[node.name], out.reshape(-1)
        picks = torch.randint(flat.numel(), (min(SAMPLES, flat.numel()),), generator=generator)
        kept[name].append(flat[picks])
        extremes[name] += [float(flat.min()), float(flat.max())]
        return out

    for image in images:
        run_graph(graph, image_batch(image), after=after)
    grids = {name: best_grid(torch.cat(parts), min(extremes[name]), max(extremes[name]))
             for name, parts in kept.items()}
    return grids | {owners[node.name]: IMAGE_GRID for node in (graph.nodes[0], graph.nodes[-1])}
