"""The portability part of a bench.json as tables in the report."""

import json

from paperlib.reporting.costs import npu_form_table, portability_notes, portability_table, standing_table
from paperlib.reporting.report import write_report
from paperlib.run import open_run

CYCLES = {"add": 200.0, "exact": 250.0}
BENCH = {"portability": {
    "what": "the student", "cpu": {"model": "Some CPU", "cores": 2, "instructions": ["avx2"]}, "rounds": 5,
    "sizes": {"tile": [256, 256], "frame": [720, 1280]},
    "runtimes": [
        {"runtime": "LiteRT", "threads": 1, "version": "2.3", "share_equal": 1.0, "share_above_5": 0.0,
         "max_difference": 0, "ms_tile": 40.0, "ms_frame": 512.34},
        {"runtime": "held back", "threads": 2, "version": "1", "share_equal": 0.8505, "share_above_5": 0.0,
         "max_difference": 26, "note": "sums saturate"},
        {"runtime": "OpenVINO", "threads": 1, "skipped": "openvino is not installed"}],
    "npu_forms": [{"skip": skip, "upsample": "depth_to_space", "accelerator": "u65", "macs_per_lr_pixel": 82368,
                   "cycles_per_lr_pixel": cycles, "left_to_cpu": ["DEPTH_TO_SPACE"]}
                  for skip, cycles in CYCLES.items()],
    "standing": [{"skip": "add", "upsample": "rows", "transpose_share": 0.5, "ms": 21.3, "psnr": 29.83, "score": 3.71,
                  "place": 4}]}}


def test_tables():
    one, held, absent = portability_table(BENCH)
    assert one == {"runtime": "LiteRT (2.3)", "threads": "1", "equal": "100 %", "largest difference": "0",
                   "ms, 256 × 256": "40", "ms, 1280 × 720": "512.3"}
    assert (held["equal"], held["ms, 256 × 256"]) == ("85.05 %", "")
    assert "not installed" in absent["equal"]
    assert set(one) == set(absent)
    assert [line["ratio"] for line in npu_form_table(BENCH)] == ["1.00", "1.25"]
    assert standing_table(BENCH)[0]["place of 5"] == "4"
    assert "Some CPU, 2 cores, avx2; least of 5 runs. held back: sums saturate." in portability_notes(BENCH)
    assert (portability_table({}), npu_form_table({}), standing_table({}), portability_notes({})) == ([], [], [], "")


def test_the_report_shows_them_where_they_were_measured(tmp_path):
    run = open_run("smoke", tmp_path)
    assert "other runtimes" not in write_report(run).read_text(encoding="utf-8")
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    text = write_report(run).read_text(encoding="utf-8")
    for part in ("The same file in other runtimes", "512.3", "sums saturate", "Forms of the graph", "place of 5"):
        assert part in text
