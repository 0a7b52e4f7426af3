"""What a run measured, read once: records, rows, claims, the paper's tables (paper section 7)."""

from functools import cached_property
from typing import Any

import pandas as pd

from paperlib.evaluation.paper_numbers import DATASET, Key, entries, reported, score
from paperlib.profiles import equals_paper, part_of
from paperlib.reporting.verdicts import CLAIMS, OTHER_SSIM, Claim, Verdict, paired, verdict_of
from paperlib.run import Run, tidy_rows

TABLES = {
    "B": "Table B: baselines (the paper: on DIV2K validation)",
    "C": "Table C: backbone, FP32 and INT8 TFLite", "D": "Table D: teacher in stage 3",
    "abstract": "Abstract: the INT8 files, exported as the authors did", "audit": "Audit: the authors' own artifacts",
    "A": "Table A: leaderboard of the challenge (MAI 2026)"}
"""Title of each table; hardly anything of the leaderboard, the last, can be measured."""
COLUMNS = (
    "table", "row", "precision", "metric", "reported", "reproduced", "delta", "tolerance",
    "verdict", "evidence", "effect_reported", "effect", "low", "high", "seeds", "images",
    "reported_inside")
"""Columns of `Results.tables`, and of tables/*.csv in a results folder."""
SAME_NETWORK = {
    ("B", "student_stage2", "fp32"): ("C", "mobileone_float", "fp32"),
    ("B", "student_deploy", "int8"): ("C", "mobileone", "fp32"),
    ("abstract", "student_dynamic_tflite", "int8"): ("C", "mobileone", "int8"),
}
"""Rows that notebook 07 measures under another name: MobileOne by the paper's method in float after
stage 2, fake-quantised after stage 3 (Table B's INT8 is the number that Table C calls FP32), and as
post-training file. They stand in where notebooks 04 and 06 did not run."""
SAME_FILES = {("abstract", "student_dynamic_tflite", "int8"): ("D", "qat_teacher", "int8"),
              ("abstract", "student_fixed_tflite", "int8"): ("D", "qat_teacher_fixed", "int8")}
"""The abstract's two files are Table D's with the teacher; they stand in where neither was measured."""
BICUBIC, PAPERS_KERNEL = ("B", "bicubic", "fp32"), ("B", "bicubic_matlab", "fp32")
OTHER_KERNEL = "bicubic by another kernel"
SCORE_TOLERANCE = 0.05
"""Table A's scores are printed to one decimal."""
WEAKEST = (Verdict.MISSED, Verdict.FAILS, Verdict.UNDECIDED, Verdict.ONE_SEED, Verdict.HOLDS,
           Verdict.REPRODUCED)
"""Of several claims about a row the first of these decides, and it is the one that is shown."""


class Results:
    """A run's `records`, read once, and their `rows`, one line each (`paperlib.run.tidy_rows`).

    Args:
        dataset: the image set on which claims and tables are judged.
    """

    def __init__(self, run: Run, dataset: str = DATASET) -> None:
        self.run, self.dataset = run, dataset
        self.records = run.records()
        self.rows = tidy_rows(
            (name, row) for name, record in self.records.items() for row in record["rows"])

    @classmethod
    def of(cls, source: "Run | Results") -> "Results":
        """The results of a run; results stay themselves."""
        return source if isinstance(source, cls) else cls(source)

    @cached_property
    def scores(self) -> dict[Key, dict[str, Any]]:
        """The lines of `rows` on the images of `dataset`, with None for what is empty; the field
        `also` holds the row that stands in, by `SAME_NETWORK` or `SAME_FILES`."""
        rows = self.rows[self.rows["dataset"] == self.dataset].astype(object)
        lines = rows.where(rows.notna(), None).to_dict("records")
        found = {(line["table"], line["row"], line["precision"], line["metric"]): line
                 for line in lines if line["value"] is not None}
        has = lambda rows: [(*row, "psnr") in found for row in rows]
        same = SAME_NETWORK if all(has(SAME_NETWORK.values())) else {}  # newer records
        if not same and all(has(SAME_FILES.values())) and not any(has(SAME_FILES)):
            same = SAME_FILES  # both files of one network, or none
        for row, other in same.items():
            for metric in ("psnr", "ssim"):
                if (*other, metric) in found:
                    found.setdefault((*row, metric), found[*other, metric] | {"also": other})
        return found

    def psnr(self, table: str, row: str) -> float | None:
        """A measured PSNR on the images of `dataset`, in dB; None where there is none."""
        return next((line["value"] for key, line in self.scores.items()
                     if key == (table, row, key[2], "psnr")), None)

    def papers(self, *keys: Key) -> bool:
        """Whether data (as notebook 01 recorded), schedule and method behind numbers are the
        paper's."""
        if self.records.get("01_data", {}).get("inputs", {}).get("is_paper_data") is not True:
            return False
        also = {key: self.scores.get(key, {}).get("also") or key for key in keys}
        return all(equals_paper(self.run.settings, part_of(*row[:2])) for row in also.values())

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        """The paper's claims in PSNR, in the order of `verdicts.CLAIMS`: text, `reported` in dB,
        fields of `Effect` (None: not measured), verdict, `reported_inside` (yes, no, ""), remarks.
        """
        return [self._judged(claim, "psnr") for claim in CLAIMS]

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The paper's tables and the audit by name, a line a reported number, None for empty.

        The effect of a line is that of the claim that decides its verdict.
        """
        lines: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        for key in reported():
            lines[key[0]].append(self._challenge(key) if key[0] == "A" else self._line(key))
        lines["audit"] = self._audit()
        return {name: pd.DataFrame([[line.get(column) for column in COLUMNS] for line in part],
                                   columns=list(COLUMNS), dtype=object)
                for name, part in lines.items()}

    def _beside(self, key: Key) -> tuple[dict[str, Any] | None, str]:
        """What stands beside a reported number, and a remark."""
        if key[:3] == BICUBIC and (*PAPERS_KERNEL, key[3]) in self.scores:
            return self.scores[*PAPERS_KERNEL, key[3]], "bicubic by MATLAB's kernel"
        line = self.scores.get(key)
        if line is not None and key[:3] == BICUBIC:
            return line, f"{OTHER_KERNEL} than the paper's, PyTorch's"
        also = (line or {}).get("also")
        return line, f"as {' '.join(also)}" if also else ""

    def _judged(self, claim: Claim, metric: str) -> dict[str, Any]:
        """A claim beside what was measured."""
        paper = claim.reported(metric)
        answer: dict[str, Any] = {
            "claim": claim.text, "reported": paper, "verdict": Verdict.NOT_RUN,
            "reported_inside": "", "remarks": [],
            **dict.fromkeys(("effect", "low", "high", "seeds", "images"))}
        models = *claim.plus, *claim.minus
        keys = [(*claim.measured_as.get(model, model), metric) for model in models]
        found = [self._beside(key) for key in keys]
        rows = [line for line, _ in found if line is not None]
        other_ssim = metric == "ssim" and any(model in OTHER_SSIM for model in models)
        if other_ssim or len(rows) < len(keys):
            return answer
        remarks = list(dict.fromkeys(remark for _, remark in found if remark))
        steps = list(dict.fromkeys(row["steps"] for row in rows))
        if None not in steps and len(steps) > 1:
            remarks.append(f"trained for {' and '.join(f'{count:,}' for count in steps)} steps")
        effect = paired(rows, [1] * len(claim.plus) + [-1] * len(claim.minus))
        word = verdict_of(paper, effect, metric, self.papers(*keys))
        if not effect.seeds:
            word = Verdict.UNDECIDED
            remarks.append("other seeds")
        inside = "" if effect.low is None else "yes" if effect.low <= paper <= effect.high else "no"
        return answer | {
            "effect": effect.mean, "low": effect.low, "high": effect.high, "seeds": effect.seeds,
            "images": effect.images, "verdict": word, "reported_inside": inside,
            "remarks": remarks}

    def _line(self, key: Key) -> dict[str, Any]:
        """A reported number with what was measured and the claim that decides its verdict."""
        line, remark = self._beside(key)
        answer = dict(zip(COLUMNS[:4], key, strict=True)) | {
            "reported": reported()[key], "verdict": Verdict.NOT_RUN, "reported_inside": "",
            "evidence": ""}
        if line is None:
            return answer
        evidence = [self.run.record_path(line["record"])]
        if line.get("sd") is not None:
            evidence[0] += f" (mean of {len(line['values'])} seeds, sd {line['sd']:.2g})"
        answer |= {"reproduced": line["value"]}
        if key[3] == "ssim" and key[:3] in OTHER_SSIM:
            return answer | {"evidence": "; ".join([*evidence, OTHER_SSIM[key[:3]]])}
        if self.papers(key):
            answer["delta"] = line["value"] - reported()[key]
        judged = [self._judged(claim, key[3]) for claim in CLAIMS if key[:3] in claim.judges]
        judged = [claim for claim in judged if claim["verdict"] in WEAKEST]
        if not judged:
            evidence += filter(None, [remark, "nothing to compare it with was run"])
            return answer | {"evidence": "; ".join(evidence)}
        chosen = min(judged, key=lambda claim: WEAKEST.index(claim["verdict"]))
        fields = ("verdict", "effect", "low", "high", "seeds", "images", "reported_inside")
        return answer | {field: chosen[field] for field in fields} | {
            "effect_reported": chosen["reported"],
            "evidence": "; ".join([*evidence, chosen["claim"], *chosen["remarks"]])}

    def _challenge(self, key: Key) -> dict[str, Any]:
        """A line of Table A: its score is arithmetic, all else needs what is not public."""
        answer = dict(zip(COLUMNS[:4], key, strict=True)) | {"reported": reported()[key]}
        if key[3] != "score":
            return answer | {"verdict": Verdict.NOT_PUBLIC,
                             "evidence": "needs the challenge's images and device"}
        value = score(*entries()[key[1]])
        return answer | {
            "reproduced": value, "delta": value - reported()[key], "tolerance": SCORE_TOLERANCE,
            "verdict": Verdict.RECOMPUTED, "evidence": "arithmetic on the reported PSNR and time"}

    def _audit(self) -> list[dict[str, Any]]:
        """The audit's lines, from the field `audit` of any record."""
        lines = []
        for name, record in self.records.items():
            for line in record.get("audit") or []:
                if (word := Verdict(line["verdict"])) in WEAKEST:
                    raise ValueError(f"verdict {word.value!r} is for what was trained here")
                kernel = OTHER_KERNEL if line["row"].startswith("bicubic") else ""
                evidence = filter(None, [f"records/{name}.json", kernel, line.get("evidence")])
                paper, value = line.get("reported"), line.get("reproduced")
                alike = not kernel and paper is not None and value is not None
                lines.append({
                    "table": "audit", "row": line["row"], "precision": line["precision"],
                    "metric": line["metric"], "reported": paper, "reproduced": value,
                    "delta": value - paper if alike else None, "verdict": word,
                    "evidence": "; ".join(evidence)})
        return lines
