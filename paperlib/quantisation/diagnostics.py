"""Where INT8 loses: ranges, signal-to-noise of every layer, and the drop taken apart (figures of 05 and 06)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperlib.quantisation.int8 import QuantisedGraph, dequantised_graph, run_quantised
from paperlib.student.graph import Graph, Node, image_batch, run_graph


def _outputs(run: Callable[[Callable[[Node, Tensor], Tensor]], None]) -> dict[str, Tensor]:
    """The outputs of all nodes of one execution; `run` gets the hook that collects them."""
    kept: dict[str, Tensor] = {}

    def keep(node: Node, out: Tensor) -> Tensor:
        kept[node.name] = out
        return out

    run(keep)
    return kept


@torch.no_grad()
def layer_ranges(
    graph: Graph, images: Sequence[np.ndarray], quantised: QuantisedGraph | None = None,
) -> list[dict[str, Any]]:
    """Ranges of weights and activations of every node, in float, over LR images (uint8, (h, w, 3)).

    Args:
        graph: weights before any rounding.
        quantised: the same network with grids.

    Returns:
        One dict a node: `name`, `op`, `low`, `high` (activations), `channel_low`, `channel_high` (lists, per channel),
        `weight_peak` (list, largest |w| per output channel; None without weights); with a quantised graph also
        `grid_low`, `grid_high`, `step`, and `clipped` (share of float values outside the grid).
    """
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    outside: dict[str, list[float]] = {}

    def after(node: Node, out: Tensor) -> Tensor:
        smallest, largest = out.amin((0, 2, 3)), out.amax((0, 2, 3))
        low[node.name] = torch.minimum(low.get(node.name, smallest), smallest)
        high[node.name] = torch.maximum(high.get(node.name, largest), largest)
        if quantised:
            grid = quantised.grid(node.name)
            beyond = (out < grid.low - grid.scale / 2) | (out > grid.high + grid.scale / 2)
            outside.setdefault(node.name, []).append(float(beyond.float().mean()))
        return out

    for image in images:
        run_graph(graph, image_batch(image), after=after)
    rows = []
    for node in graph.nodes:
        peak = None if node.weight is None else node.weight.reshape(node.weight.shape[0], -1).abs().amax(1)
        row = {"name": node.name, "op": node.op, "low": float(low[node.name].min()),
               "high": float(high[node.name].max()), "channel_low": low[node.name].tolist(),
               "channel_high": high[node.name].tolist(), "weight_peak": None if peak is None else peak.tolist()}
        if quantised:
            grid = quantised.grid(node.name)
            row |= {"grid_low": grid.low, "grid_high": grid.high, "step": grid.scale,
                    "clipped": float(np.mean(outside[node.name]))}
        rows.append(row)
    return rows


@torch.no_grad()
def layer_sqnr(qgraph: QuantisedGraph, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Signal-to-quantisation-noise of every node's output, in dB: what rounding the activations adds up to.

    The signal is the graph with the shipped weights in float (`dequantised_graph`).

    Args:
        images: LR images, uint8 (h, w, 3).

    Returns:
        One dict a node: `name`, `op`, `sqnr_db` = 10·log10(var(signal) / mean squared error); infinite for no error.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    graph = dequantised_graph(qgraph)
    for image in images:
        x = image_batch(image)
        plain = _outputs(lambda keep, x=x: run_graph(graph, x, after=keep))
        fake = _outputs(lambda keep, x=x: run_quantised(qgraph, x, observe=keep))
        for name, out in plain.items():
            signal[name] = signal.get(name, 0.0) + float(out.var(unbiased=False))
            noise[name] = noise.get(name, 0.0) + float((fake[name] - out).square().mean())
    return [{"name": node.name, "op": node.op,
             "sqnr_db": float("inf") if noise[node.name] == 0 else
             10 * float(np.log10(max(signal[node.name], 1e-12) / noise[node.name]))} for node in qgraph.graph.nodes]


def drop_decomposition(
    graph: Graph, qgraph: QuantisedGraph, score: Callable[[Callable[[np.ndarray], np.ndarray]], float],
) -> list[dict[str, Any]]:
    """What weights and activations each cost.

    Args:
        graph: weights before any rounding (`float_graph`); those of `qgraph` may have been rounded to data already.
        qgraph: the same network with its grids and the weights that are rounded.
        score: PSNR (dB) of an upscaler (uint8 (h, w, 3) → float32 (3h, 3w, 3)) on images of the caller's choice.

    Returns:
        One dict for float, weights only, activations only and both: `what`, `psnr`, `drop` (dB below float).
    """
    rows, exact = [], replace(qgraph, graph=graph)
    for what, weights, activations in (("float", False, False), ("weights only", True, False),
                                       ("activations only", False, True), ("both", True, True)):
        def upscale(lr: np.ndarray, weights: bool = weights, activations: bool = activations) -> np.ndarray:
            chosen = qgraph if weights else exact
            sr = run_quantised(chosen, image_batch(lr), weights=weights, activations=activations)
            return sr[0].permute(1, 2, 0).contiguous().numpy()

        rows.append({"what": what, "psnr": score(upscale)})
    return [row | {"drop": rows[0]["psnr"] - row["psnr"]} for row in rows]
