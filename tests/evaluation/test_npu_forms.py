"""Forms of the graph on an NPU: what stays on it, what it costs, and arithmetic of the estimate that can be checked."""

from itertools import pairwise

import pytest
import torch

from paperlib.evaluation.npu_forms import forms, npu_forms, plain_graph, standing
from paperlib.evaluation.reported import OURS, entries, score
from paperlib.export.npu import vela_available
from paperlib.settings import StudentSettings
from paperlib.student.graph import macs_per_lr_pixel, receptive_radius, run_graph

SMALL = StudentSettings(blocks=2, channels=8)


def test_the_plain_form_is_convolutions_alone_with_the_same_reach():
    graph = plain_graph(StudentSettings())
    assert {node.op for node in graph.nodes[1:-2]} == {"conv"}
    assert receptive_radius(graph) == 10
    widths = [3, 28, *[36] * 7, 60, 27]
    assert macs_per_lr_pixel(graph) == 9 * sum(a * b for a, b in pairwise(widths))
    assert run_graph(plain_graph(SMALL), torch.rand(1, 3, 8, 8) * 255).shape == (1, 3, 24, 24)


def test_operators_of_the_forms():
    operators = {name: [node.op for node in qgraph.graph.nodes] for name, qgraph in forms(SMALL).items()}
    assert ("add" in operators["add"], "concat" in operators["exact"]) == (True, True)
    assert not {"add", "concat"} & set(operators["plain"])


@pytest.mark.skipif(not vela_available(), reason="ethos-u-vela (extra npu) is not installed")
def test_rows_stay_on_the_npu_and_forms_are_costed():
    lines = npu_forms(24, 32, ("ethos-u65-512",), SMALL)
    ours = {(line["skip"], line["upsample"]): line for line in lines if "submitted" not in line["upsample"]}
    assert len(ours) == 6
    for (_, upsample), line in ours.items():
        assert line["left_to_cpu"] == ([] if upsample == "rows" else ["DEPTH_TO_SPACE"])
        assert line["cycles_per_lr_pixel"] > 0


def test_the_estimate_is_the_arithmetic_it_says():
    line = {"accelerator": "ethos-u65-512", "left_to_cpu": []}
    lines = [line | {"skip": "add", "upsample": "rows", "cycles_per_lr_pixel": 50.0},
             line | {"skip": "add", "upsample": "reshape and transpose (submitted)", "cycles_per_lr_pixel": 100.0,
                     "left_to_cpu": ["TRANSPOSE"]},
             line | {"skip": "exact", "upsample": "depth_to_space", "cycles_per_lr_pixel": 1.0,
                     "left_to_cpu": ["DEPTH_TO_SPACE"]}]
    found = standing(lines, gain_db=0.0)
    assert [(at["skip"], at["transpose_share"]) for at in found] == [("add", 0.0), ("add", 0.5), ("add", 0.9)]
    psnr, ms = entries()[OURS]
    assert found[0]["ms"] == pytest.approx(ms / 2)
    assert found[0]["score"] == pytest.approx(2 * score(psnr, ms))
    # 3.5, 7.0 and 35 points (rounded) among 21.8, 21.5, 16.5 and 1.7
    assert [at["place"] for at in found] == [4, 4, 1]
    assert standing(lines[:1]) == []
