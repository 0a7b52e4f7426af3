import csv

import pytest

from paperlib.reporting.costs import our_points
from paperlib.reporting.peers import FILE, peer_points, peers_sentence
from paperlib.run import measured_row, open_run


def test_peers_are_the_measured_table_and_ours_appear_where_measured(tmp_path):
    points = {point["name"]: point for point in peer_points("Set14")}
    assert points["NCNet"] == {"name": "NCNet", "group": "peers, INT8", "macs": 52.1, "psnr": 27.583}
    run = open_run("smoke", tmp_path)
    run.record("04_stage2", [measured_row("B", "student_stage2", "fp32", "psnr", 27.0, "validation")])
    assert our_points(run) == []
    run.record("06_tflite_eval", [measured_row("B", "student_deploy", "int8", "psnr", 31.4, "Set5")])
    (point,) = our_points(run)
    assert point["psnr"] == 31.4
    assert point["macs"] == pytest.approx(82.4, abs=0.05)


def test_who_leads_is_read_from_the_list():
    sets = ("Set5", "Set14", "B100")
    behind = peers_sentence(dict(zip(sets, (31.47, 27.58, 27.395), strict=True)))
    assert behind.startswith("Of 5 public INT8 files of up to 100K parameters")
    first, second, third = behind.partition("B100): ")[2].rstrip(".").split("; ")
    assert first == "PureConvSR trial 10 (97K, 31.573 / 27.63 / 27.41) ahead on all"
    assert second == "NCNet (52K, 31.500 / 27.583 / 27.361) ahead on Set5 and Set14"
    assert third == "PureConvSR trial 17 (76K, 31.465 / 27.584 / 27.340) ahead on Set14"
    rounded = peers_sentence(dict(zip(sets, (31.573, 27.627, 27.4), strict=True)))
    assert rounded.endswith("PureConvSR trial 10 (97K, 31.573 / 27.63 / 27.41) ahead on B100 and level on Set14.")
    assert peers_sentence(dict.fromkeys(sets, 40.0)).endswith("none is ahead of it on any set.")
    assert "trial 10" not in peers_sentence(dict.fromkeys(sets, 20.0), largest=80_000)
    with FILE.open(encoding="utf-8", newline="") as file:
        assert all(line["protocol"] and line["source"] for line in csv.DictReader(file))
