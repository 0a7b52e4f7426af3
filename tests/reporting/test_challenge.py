"""The score taken apart: exact arithmetic, and what this run's records say."""

import math

import pytest

from paperlib.evaluation import paper_numbers
from paperlib.evaluation.paper_numbers import entries, ms_per_db, score_gap
from paperlib.reporting import challenge
from paperlib.reporting.challenge import moves
from paperlib.run import measured_row, open_run


def test_a_decibel_counts_two_and_a_halved_time_one():
    assert score_gap((30.0, 8.0), (31.0, 4.0)) == {"psnr": 2.0, "time": 1.0, "total": 3.0}
    assert score_gap((30.0, 4.0), (29.5, 8.0)) == {"psnr": -1.0, "time": -1.0, "total": -2.0}
    assert ms_per_db(0.5, 10.0) == 10.0
    assert paper_numbers.score(30.5, 20.0) == pytest.approx(paper_numbers.score(30.0, 10.0))


def test_the_leaders_gap_is_mostly_time():
    assert entries()["AIO_MAI"] == (29.79, 41.1)
    parts = score_gap(entries()["AIO_MAI"], entries()["AntYSP"])
    assert parts["psnr"] == pytest.approx(2 * 0.17)
    assert parts["time"] == pytest.approx(math.log2(41.1 / 4.33))
    ratio = paper_numbers.score(*entries()["AntYSP"]) / paper_numbers.score(*entries()["AIO_MAI"])
    assert parts["total"] == pytest.approx(math.log2(ratio))
    words = " ".join(challenge.sentences())
    assert "AntYSP is 2^3.59 = 12.0 times ahead of AIO_MAI: 2^0.34 by 0.17 dB, 2^3.25 by 9.5 times less time" in words
    assert "91 % of the gap is time" in words
    assert "0.1 dB more is worth 6.11 ms at 41.1 ms and 0.64 ms at 4.33 ms" in words
    assert "1.79 dB more at 41.1 ms, or 3.42 ms at 29.79 dB" in words


def test_the_leaderboard_has_one_line_an_entry_and_its_scores_come_out():
    table = challenge.leaderboard().set_index("entry")
    assert list(table.index) == ["AntYSP", "AntSR", "z6", "IN2GM", "AIO_MAI"]
    assert table.loc["AIO_MAI", "INT8 PSNR / SSIM"] == "29.79 / 0.8634"
    assert table.loc["AIO_MAI", "INT8 costs (dB)"] == "0.19"
    assert table.loc["z6", "FP32 PSNR / SSIM"] == "not reported"
    assert [round(float(value), 1) for value in table["score, recomputed"]] == pytest.approx(
        [float(value) for value in table["score"]], abs=0.05)


def test_own_variants_are_ranked_by_what_they_move(tmp_path):
    run = open_run("demo", tmp_path)
    assert moves(run) == []
    assert challenge.challenge_text(run).endswith("not run")
    rows = [measured_row(*key, "psnr", value, "validation") for key, value in {
        ("B", "student_deploy", "int8"): 27.0, ("export", "float_before_qat", "fp32"): 27.25,
        ("export", "tflite_post_training", "int8"): 26.5}.items()]
    run.record("06_tflite_eval", rows)
    run.record("07_ablations", [], graph_forms={"add": 4_000_000, "exact": 2_000_000})
    assert [(line["change"].split(" ")[2], line["log2"]) for line in moves(run)] == [
        ("instead", 1.0), ("exact", 1.0), ("by", 0.5)]
    assert "| ×\u00a02.000 | 4.00 → 2.00 million NPU cycles" in challenge.challenge_text(run)
