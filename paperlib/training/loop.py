"""One training loop for every stage (paper section 4): a stage is data, a model and a start.

Bit for bit repeatable on a CPU: patches are a pure function of (seed, step), so is what a network
draws itself (`Drawing`), and the state of the optimiser and the EMA is saved. Engine: accelerate,
so the same loop runs on a CPU, one GPU, or under torchrun.
"""

import copy
import csv
import io
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from paperlib.data.dataset import Batch
from paperlib.environment import keep_freed_memory, plain_lines
from paperlib.errors import UserError
from paperlib.files import file_lock, write_text
from paperlib.settings import StageSettings, flatten
from paperlib.training.losses import stage_loss
from paperlib.training.state import TrainingState, load_state, save_state

Draw = Callable[[int, int, int], Batch]
"""(step, rank, world) → this process's part of the step's batch."""
Score = Callable[[nn.Module], dict[str, float]]
"""Scores a model on the validation photographs; `psnr_rgb` decides which weights are best."""


@runtime_checkable
class Drawing(Protocol):
    """A network that draws random numbers while it trains.

    They must be a function of (seed, step), or resuming is not bit-exact.
    """

    def before_step(self, step: int, rank: int) -> None:
        """Called on the trained network before each step, with the number of this process."""


def processes() -> PartialState:
    """The processes that train together: this one, or torchrun's, which without a GPU talk through gloo.

    Without `cpu=True` accelerate does not join CPU processes, and each would train separately in the
    same folder.
    """
    return PartialState(cpu=not torch.cuda.is_available()
                        or parse_flag_from_env("ACCELERATE_USE_CPU"))


@dataclass
class Fit:
    """What a training gave: EMA weights in `model` (evaluation mode), the best or the last, and how it went."""

    model: nn.Module
    best_step: int
    best_psnr: float
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per validation: step, lr, loss and its terms (means since the row before), scores, seconds."""
    seconds: float = 0.0
    """Time spent in training, over all resumed parts."""
    resumed_from: int = 0
    kept_step: int = 0
    """Steps behind the weights in `model`: `best_step`, or all where the stage keeps the last."""


def learning_rate(stage: StageSettings, step: int) -> float:
    """Learning rate of a step: linear warm-up, then cosine to 0, halving, or constant (paper section 4).

    The cosine may have a part at the full rate before it (`hold`, ours).
    """
    warm = round(stage.warmup * stage.steps)
    if step < warm:
        return stage.lr * (step + 1) / warm
    if stage.decay == "cosine":
        done = (step - warm) / max(1, stage.steps - warm)
        falling = max(0.0, done - stage.hold) / (1 - stage.hold)
        return stage.lr * 0.5 * (1 + math.cos(math.pi * falling))
    return stage.lr * 0.5 ** (step // stage.halve_every) if stage.decay == "halve" else stage.lr


@torch.no_grad()
def clip_weights(model: nn.Module, stage: StageSettings) -> None:
    """Clip convolution weights in place: |w| ≤ clip_body in the body, ≤ clip_ends elsewhere (paper section 4).

    The released run clips in stages 2 and 3 and not in stage 1; where a limit is 0 nothing is clipped.
    """
    kernels = [(name, value) for name, value in model.named_parameters() if value.ndim == 4]
    for limit, inside in ((stage.clip_body, True), (stage.clip_ends, False)):
        chosen = [value for name, value in kernels if ("body" in name) == inside]
        if limit > 0 and chosen:
            torch._foreach_clamp_max_(chosen, limit)
            torch._foreach_clamp_min_(chosen, -limit)


def recalibrate_bn(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy whose BN running statistics are the plain average over `batches` ((B, 3, H, W), 0..255); paper section 4.

    Without batches, or without BN layers, the copy is unchanged.
    """
    twin = copy.deepcopy(model)
    if batches:
        form, mode = getattr(twin, "form", None), model.training
        if form == "collapsed":
            twin.form = "expanded"
        with torch.no_grad():
            update_bn(batches, twin)
        if form is not None:
            twin.form = form
        twin.train(mode)
    return twin


class _Progress:
    """A bar in a terminal or notebook; elsewhere (`plain_lines`) one line every 20 seconds."""

    def __init__(self, name: str, start: int, total: int, quiet: bool) -> None:
        self.name, self.start, self.total, self.quiet = name, start, total, quiet
        self.plain = plain_lines()
        self.began = self.spoke = time.monotonic()
        self.bar = tqdm(total=total, initial=start, desc=name, disable=quiet
                        or self.plain is not None)
        self.psnr = ""

    def advance(self, step: int, loss: float, psnr: float | None) -> None:
        self.psnr = self.psnr if psnr is None else f" psnr {psnr:.2f} dB"
        self.bar.update(1)
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}{self.psnr}", refresh=False)
        now = time.monotonic()
        if self.plain is not None and not self.quiet and (now - self.spoke > 20
                                                          or step == self.total):
            self.spoke = now
            left = (now - self.began) / (step - self.start) * (self.total - step)
            print(f"{self.name}: step {step}/{self.total} loss {loss:.4f}{self.psnr}, {left:.0f} s left",
                  file=self.plain, flush=True)


def _flat(stage: StageSettings) -> dict[str, Any]:
    return flatten("stage",
                   stage.model_dump(mode="json", exclude={"expect", "checkpoint_every", "keep"}))


def fit(
    model: nn.Module,
    stage: StageSettings,
    draw: Draw,
    folder: Path,
    *,
    name: str,
    score: Score,
    teacher: Callable[[Tensor], Tensor] | None = None,
    events: Mapping[int, Callable[[nn.Module], None]] | None = None,
    identity: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Fit:
    """Train a copy of `model`; continue where an earlier call with the same arguments was stopped.

    The process keeps freed memory from then on (`keep_freed_memory`), however it was started.

    Args:
        model: maps (B, 3, p, p) in 0..255 to (B, 3, 3p, 3p); left unchanged.
        stage: schedule and loss.
        draw: gives the patches of a step; `Batch.teacher` is used as target where `teacher` is None.
        folder: where the training state lies; locked while training.
        score: called with the EMA model every `validate_every` steps and at the end.
        teacher: computes targets in 0..1 from LR patches (B, 3, p, p) in 0..255, without gradient.
        events: called with the trained model and with its EMA copy before the step they are keyed by.
        identity: what else must be unchanged for a stopped training to be continued (data, start weights).

    Raises:
        UserError: the folder is locked, cannot be written, or holds a training with other settings;
            the loss is not finite; the stage distils and has no teacher.
    """
    keep_freed_memory()
    # under torchrun the first process holds the lock and writes; all of them read the state
    with file_lock(folder / "lock") if os.environ.get("RANK", "0") == "0" else nullcontext():
        processes()
        accelerator = Accelerator()
        identity = _flat(stage) | dict(identity or {})
        state = TrainingState.begin(model, stage)
        if saved := load_state(folder, identity):
            state.restore(saved, saved["path"])
        first, spent, began = state.step, state.seconds, time.monotonic()
        # channels_last is the faster layout on CPU and GPU; it must be set before DDP wraps the model
        state.live = state.live.to(accelerator.device, memory_format=torch.channels_last)
        state.ema.to(accelerator.device)
        trained, state.optimizer = accelerator.prepare(state.live, state.optimizer)
        progress = _Progress(name, first, stage.steps, quiet or not accelerator.is_main_process)

        for step in range(first, stage.steps):
            for event in [events[step]] if events and step in events else []:
                event(state.live)
                event(state.ema.module)
            if isinstance(state.live, Drawing):
                state.live.before_step(step, accelerator.process_index)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            batch = draw(step, accelerator.process_index, accelerator.num_processes)
            terms = _step(trained, state.optimizer, stage, batch, teacher,
                          step / stage.steps, accelerator)
            clip_weights(state.live, stage)
            state.ema.update(state.live, step=step + 1)
            if not math.isfinite(terms["loss"]):
                raise UserError(f"{name}: the loss is {terms['loss']} at step {step}. Lower {name}.lr; the "
                                f"last good state is in {folder}.")
            state.count(terms)
            state.step, psnr = step + 1, None
            last = state.step == stage.steps
            if last or state.step % stage.validate_every == 0:
                scores = score(state.ema.module)
                psnr = scores["psnr_rgb"]
                state.validated(scores, learning_rate(stage, step),
                                spent + time.monotonic() - began)
            if accelerator.is_main_process and (last or state.step % stage.checkpoint_every == 0):
                save_state(folder, state.step,
                           state.saved(identity, spent + time.monotonic() - began))
                write_text(folder / "history.csv", history_csv(state.history))
            progress.advance(state.step, terms["loss"], psnr)

        progress.bar.close()
        best, kept = state.ema.module.to("cpu"), stage.steps
        if stage.keep == "best":
            best.load_state_dict(state.best)
            kept = state.best_step
        return Fit(best.eval(), state.best_step, state.best_psnr, state.history,
                   spent + time.monotonic() - began, first, kept)


def _step(trained: nn.Module, optimizer: torch.optim.Optimizer, stage: StageSettings, batch: Batch,
          teacher: Callable[[Tensor], Tensor] | None, progress: float,
          accelerator: Accelerator) -> dict[str, float]:
    """One optimiser step on this process's share of the batch; returns the loss and its terms, averaged over all."""
    optimizer.zero_grad(set_to_none=True)
    device, target = accelerator.device, None
    lr = batch.lr.to(device).float().contiguous(memory_format=torch.channels_last)
    if stage.loss.kd > 0 and batch.teacher is not None:
        target = batch.teacher.to(device).float() / 255
    elif stage.loss.kd > 0 and teacher is not None:
        target = teacher(lr)
    loss, terms = stage_loss(stage.loss, trained(lr), batch.hr.to(device).float(), target, progress)
    accelerator.backward(loss)
    if stage.clip_grad > 0:
        accelerator.clip_grad_norm_(trained.parameters(), stage.clip_grad)
    optimizer.step()
    totals = terms | {"loss": loss.detach()}
    means = accelerator.reduce(torch.stack(list(totals.values())), "mean").tolist()
    return dict(zip(totals, means, strict=True))


def history_csv(history: list[dict[str, float]]) -> str:
    """The history as CSV text, one row per validation."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in history for key in row))
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
