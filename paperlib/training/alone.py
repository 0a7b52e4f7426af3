"""One stage outside its notebook, in one process or several (paper section 4)."""

from paperlib.data.dataset import open_data
from paperlib.environment import tell
from paperlib.run import Run
from paperlib.student.models import fuse_model
from paperlib.training.finetuning import finetune, float_student
from paperlib.training.loop import processes
from paperlib.training.stages import (
    Trained,
    open_teacher,
    recalibrated,
    stage1,
    stage2,
    stage3,
    stage3_targets,
    teacher_targets,
)


def train_stage(run: Run, name: str) -> Trained:
    """One stage of a run outside its notebook; under torchrun the first process prepares data and targets for all.

    Only what one process does alone stands inside `main_process_first`: a training there would wait for ever for the
    others, which wait for the first.

    Args:
        name: stage1, stage2, finetune or stage3.

    Raises:
        UserError: the stage before it has not run, the settings leave it out, or see `fit`.
    """
    with processes().main_process_first():
        if processes().is_main_process:
            tell("opening the store of training pixels (built when it is used for the first time)")
        data = open_data(run.settings.data)
    if name == "stage1":
        return stage1(run, data)
    if name == "stage2":
        return stage2(run, data, teacher_targets(run, data, open_teacher(run, data)))
    if name == "finetune":
        return finetune(run, data, fuse_model(recalibrated(run, data), clamp=True))
    fused = float_student(run, data)
    return stage3(run, data, fused, stage3_targets(run, data))
