"""How far seeds apart the student comes out: `python -m paperlib.benchmarks.seeds`, after `paperlib reproduce`.

Stage 1 is trained once. From its weights every seed trains stages 2 and 3 anew (other patches, other
kernels in silent channels), exports its INT8 file and is measured on all image sets. The run's own seed is one of them;
the others get a folder each, `seeds/<seed>/` in the run's. What comes out goes into `seeds.json` there, where the
model card of that run finds it. Trainings that are finished are not repeated, a stopped one continues. Where stage 2 is
long, the other seeds may go on from one of its states (`--state`, a copy that was kept): they share its first part.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paperlib.data.dataset import open_data
from paperlib.environment import provenance, root
from paperlib.errors import UserError
from paperlib.evaluation.scoring import measure
from paperlib.evaluation.torch_upscalers import TorchUpscaler
from paperlib.export.convert import export_tflite
from paperlib.export.tflite import TFLiteUpscaler
from paperlib.files import atomic_path, sha256_file, write_json
from paperlib.quantisation.qat import quantised_graph
from paperlib.run import open_run
from paperlib.student.models import fuse_model
from paperlib.training.ablations import over_seeds
from paperlib.training.stages import open_teacher, recalibrated, stage2, stage3, stage3_targets, teacher_targets
from paperlib.training.state import read_state, save_state


def _stage1(out: Path) -> Path:
    """The weights of a run's stage 1.

    Raises:
        UserError: there are none.
    """
    path = out / "checkpoints" / "stage1" / "student.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: stage 1 comes first. Run paperlib reproduce --until 02 --out {out}.")
    return path


def _folder(out: Path, seed: int) -> Path:
    """A seed's folder in the run's, with the run's stage 1; its teacher is found anew, a small one trained anew."""
    folder = out / "seeds" / str(seed)
    target = folder / _stage1(out).relative_to(out)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            shutil.copyfile(_stage1(out), temporary)
    return folder


def _go_on_from(state: dict[str, Any], folder: Path, seed: int) -> None:
    """Give a folder whose stage 2 has not begun the given state of the run's, as if it were this seed's."""
    target = folder / "checkpoints" / "stage2"
    if not list(target.glob("state-*.pt")):
        target.mkdir(parents=True, exist_ok=True)
        save_state(target, state["step"], state | {"identity": state["identity"] | {"seed": seed}})


def one_seed(profile: str, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train stages 2 and 3 from the folder's stage 1 (or load them) and measure float network and INT8 file.

    Returns:
        `sha256` of the INT8 file, `kept_step` of stage 2, and `rows`: PSNR RGB of every image set, fp32 and int8.
    """
    run = open_run(profile, folder, dict(settings))
    data = open_data(run.settings.data)
    second = stage2(run, data, teacher_targets(run, data, open_teacher(run, data)))
    fused = fuse_model(recalibrated(run, data), clamp=True)
    third = stage3(run, data, fused, stage3_targets(run, data))
    file = export_tflite(quantised_graph(third.model), run.stage_folder("export") / "student_dynamic_int8.tflite")
    steps = run.settings.stage1.steps + run.settings.stage2.steps
    rows = (measure(data, TorchUpscaler(fused, "float"), "seeds", "student", "fp32", steps=steps)
            + measure(data, TFLiteUpscaler(file), "seeds", "student", "int8", steps=steps + run.settings.stage3.steps))
    return {"sha256": sha256_file(file), "kept_step": second.fit.kept_step,
            "rows": [row for row in rows if row["metric"] == "psnr"]}


def compare(out: Path, seeds: Sequence[int], profile: str = "benchmark", more: Mapping[str, Any] | None = None,
            state: Path | None = None) -> Path:
    """Train and measure every seed and write `seeds.json` into the run's folder; returns its path.

    Args:
        out: folder of a run whose stage 1 is trained.
        seeds: the run's own first.
        more: settings of the run beside the profile's.
        state: of the run's stage 2; the other seeds go on from it instead of from stage 1.

    Raises:
        UserError: fewer than two seeds, the run has trained no stage 1, it is another seed's, or `state` is none of
            its stage 2.
    """
    if len(set(seeds)) < 2:
        raise UserError("a spread needs two seeds at least. Name them with --seeds.")
    settings, results, stage1 = dict(more or {}), [], sha256_file(_stage1(out))
    shared = None if state is None else read_state(state)
    for seed in seeds:
        folder = out if seed == seeds[0] else _folder(out, seed)
        if shared is not None and seed != seeds[0]:
            _go_on_from(shared, folder, seed)
        results.append(one_seed(profile, folder, settings | {"seed": seed}))
        print(f"seed {seed}: " + ", ".join(f"{row['dataset']} {row['precision']} {row['value']:.3f}"
                                           for row in results[-1]["rows"]), flush=True)
    about = open_run(profile, out, settings | {"seed": seeds[0]})
    return write_json(out / "seeds.json", provenance() | {
        "what": f"{'stages 2' if shared is None else 'the rest of stage 2'} and 3 with several seeds, from one stage "
                f"{1 if shared is None else 2}; PSNR RGB in dB, per image, and over seeds",
        "profile": profile, "settings": about.settings.model_dump(mode="json"), "seeds": list(seeds),
        "stage1": stage1, "stage2_shared_steps": shared["step"] if shared else 0,
        "files": {str(seed): result["sha256"] for seed, result in zip(seeds, results, strict=True)},
        "kept_steps": [result["kept_step"] for result in results],
        "rows": over_seeds([result["rows"] for result in results], seeds)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=root() / "results" / "benchmark")
    parser.add_argument("--profile", default="benchmark")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236])
    parser.add_argument("--state", type=Path, help="a state file of stage 2 from which the other seeds go on")
    given = parser.parse_args()
    try:
        print(compare(given.out, given.seeds, given.profile, state=given.state))
    except UserError as error:
        parser.exit(2, f"{error}\n")
