"""Fine-tuning of the folded student before stage 3: ours, the paper goes from stage 2 to 8 bits at once.

Folded, the student is the plain network that ships, without branches or statistics; trained on for longer, with squared
error, it still gains (`results/reference/benchmark/tried.md`).
"""

from torch import nn

from paperlib.data.dataset import Data
from paperlib.errors import UserError
from paperlib.run import Run
from paperlib.settings import Settings
from paperlib.student.models import fuse_model, load_model, save_student, weights_hash
from paperlib.training.stages import Trained, recalibrated, train


def finetune(run: Run, data: Data, fused: nn.Module) -> Trained:
    """Train the folded student of stage 2 further, as `finetune` says. Leaves `student.safetensors`, EMA weights.

    Args:
        fused: the student folded, values (B, 3, h, w) in 0..255 in and out; it is not changed.

    Raises:
        UserError: the settings leave it out, or see `fit`.
    """
    stage = run.settings.finetune
    if not left_in(run.settings):
        raise UserError("this run has no fine-tuning: finetune.enabled is false, or quant.start names the student that "
                        "stage 3 starts from. Set finetune.enabled=true, and no quant.start.")
    result = train(run, data, "finetune", fuse_model(fused), stage, stream="finetune", start=weights_hash(fused))
    path = save_student(result.model, run.stage_folder("finetune") / "student.safetensors", stage="finetune",
                        step=result.kept_step)
    return Trained(result.model, path, result)


def left_in(settings: Settings) -> bool:
    """Whether a run fine-tunes; it does not where `quant.start` names the student that stage 3 starts from."""
    return settings.finetune.enabled and not settings.quant.start


def float_student(run: Run, data: Data, settings: Settings | None = None) -> nn.Module:
    """The folded student that stage 3 starts from: the fine-tuned one where there is one, else stage 2's.

    Raises:
        UserError: its weights are not there yet.
    """
    settings = settings or run.settings
    if left_in(settings):
        return load_model(run.stage_folder("finetune") / "student.safetensors")
    return fuse_model(recalibrated(run, data, settings=settings), clamp=True)
