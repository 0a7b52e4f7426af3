"""Where INT8 loses: ranges, noise of every layer, and the drop taken apart (notebook 05)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperlib.quantisation.int8 import QuantisedGraph, dequantised_graph, run_quantised
from paperlib.student.graph import Graph, Images, Node, image_batch, run_graph


@torch.no_grad()
def layer_ranges(graph: Graph, images: Images, quantised: QuantisedGraph) -> list[dict[str, Any]]:
    """Ranges of weights and activations of every node, in float (`graph`: before any rounding).

    Returns:
        One dict a node: `name`, `op`, `low`, `high` (activations), `channel_low`, `channel_high`
        (lists, per channel), `grid_low`, `grid_high`, `step`.
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}

    def after(node: Node, out: Tensor) -> Tensor:
        smallest, largest = out.amin((0, 2, 3)), out.amax((0, 2, 3))
        low[node.name] = torch.minimum(low.get(node.name, smallest), smallest)
        high[node.name] = torch.maximum(high.get(node.name, largest), largest)
        return out

    for image in images:
        run_graph(graph, image_batch(image), after=after)
    rows = []
    for node in graph.nodes:
        grid, least, most = quantised.grid(node.name), low[node.name], high[node.name]
        rows.append({
            "name": node.name, "op": node.op, "low": float(least.min()), "high": float(most.max()),
            "channel_low": least.tolist(), "channel_high": most.tolist(),
            "grid_low": grid.low, "grid_high": grid.high, "step": grid.scale})
    return rows


@torch.no_grad()
def layer_sqnr(qgraph: QuantisedGraph, images: Images) -> list[dict[str, Any]]:
    """Signal-to-quantisation-noise of every node's output: what rounding the activations adds up
    to. The signal is `dequantised_graph`.

    Returns:
        One dict a node: `name`, `op`, `sqnr_db` = 10·log10(var(signal) / mean squared error);
        infinite for no error.
    """
    signal: dict[str, float] = {node.name: 0.0 for node in qgraph.graph.nodes}
    noise = dict(signal)
    graph = dequantised_graph(qgraph)
    for image in images:
        plain: dict[str, Tensor] = {}
        fake: dict[str, Tensor] = {}
        for run, source, kept in ((run_graph, graph, plain), (run_quantised, qgraph, fake)):
            keep = lambda node, out, kept=kept: kept.setdefault(node.name, out)
            run(source, image_batch(image), after=keep)
        for name, out in plain.items():
            signal[name] += float(out.var(unbiased=False))
            noise[name] += float((fake[name] - out).square().mean())
    return [{"name": node.name, "op": node.op,
             "sqnr_db": float("inf") if noise[node.name] == 0 else
             10 * float(np.log10(max(signal[node.name], 1e-12) / noise[node.name]))}
            for node in qgraph.graph.nodes]


def drop_decomposition(
        graph: Graph, qgraph: QuantisedGraph,
        score: Callable[[Callable[[np.ndarray], np.ndarray]], float]) -> list[dict[str, Any]]:
    """What weights and activations each cost: `graph` is before any rounding (`float_graph`),
    `score` the PSNR (dB) of an upscaler, uint8 (h, w, 3) → float32 (3h, 3w, 3).

    Returns:
        One dict for float, weights only, activations only and both: `what`, `psnr`, `drop` (dB
        below float).
    """
    rows, exact = [], replace(qgraph, graph=graph)
    for what, weights, activations in (("float", False, False), ("weights only", True, False),
                                       ("activations only", False, True), ("both", True, True)):
        run = partial(run_quantised, qgraph if weights else exact, weights=weights,
                      activations=activations)
        upscale = lambda lr, run=run: run(image_batch(lr))[0].permute(1, 2, 0).contiguous().numpy()
        rows.append({"what": what, "psnr": score(upscale)})
    return [row | {"drop": rows[0]["psnr"] - row["psnr"]} for row in rows]
