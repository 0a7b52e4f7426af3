"""One training loop for every stage (paper section 4): a stage is data, a model and a start.

Bit for bit repeatable on a CPU: patches are a pure function of (seed, step), and the state of
optimiser and EMA is saved. Engine: accelerate (a CPU, one GPU, or torchrun).
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from paperlib.data.dataset import Batch
from paperlib.environment import Progress, keep_freed_memory
from paperlib.errors import UserError
from paperlib.files import file_lock, write_text
from paperlib.settings import StageSettings, flatten
from paperlib.training.losses import stage_loss, target_01
from paperlib.training.state import TrainingState, load_state, save_state

Draw = Callable[[int, int, int], Batch]
"""(step, rank, world) → this process's part of the step's batch."""
Score = Callable[[nn.Module], dict[str, float]]
"""Scores a model on the validation photographs; `psnr_rgb` decides which weights are best."""


def processes() -> PartialState:
    """The processes that train together: this one, or torchrun's, without a GPU through gloo.

    Without `cpu=True` accelerate does not join CPU processes: each would train in the same folder.
    """
    return PartialState(cpu=not torch.cuda.is_available()
                        or parse_flag_from_env("ACCELERATE_USE_CPU"))


@dataclass
class Fit:
    """What a training gave: EMA weights (evaluation mode), the best or the last, and its log."""

    model: nn.Module
    best_step: int
    best_psnr: float
    history: list[dict[str, float]] = field(default_factory=list)
    """A row per validation: step, lr, loss and its terms (means since the row before), scores,
    seconds."""
    resumed_from: int = 0
    kept_step: int = 0
    """Steps behind the weights in `model`: `best_step`, or all where the stage keeps the last."""


def learning_rate(stage: StageSettings, step: int) -> float:
    """Learning rate of a step: linear warm-up, then cosine to 0, halving, or constant (section 4).

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
    """Clip convolution weights in place: |w| ≤ clip_body in the body, ≤ clip_ends elsewhere.

    Paper section 4; the released run does so in stages 2 and 3. A limit of 0 clips nothing.
    """
    kernels = [(name, value) for name, value in model.named_parameters() if value.ndim == 4]
    for limit, inside in ((stage.clip_body, True), (stage.clip_ends, False)):
        chosen = [value for name, value in kernels if ("body" in name) == inside]
        if limit > 0 and chosen:
            torch._foreach_clamp_max_(chosen, limit)
            torch._foreach_clamp_min_(chosen, -limit)


@contextmanager
def one_thread() -> Iterator[None]:
    """For the block, or a function that it decorates, PyTorch computes in one thread on the CPU: the
    same bits on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def recalibrate_bn(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy whose BN statistics are the plain average over `batches` (paper section 4).

    Args:
        model: not collapsed, whose blocks compute with the statistics that they have.
        batches: (B, 3, H, W) in 0..255; without any, the copy is unchanged.
    """
    twin = copy.deepcopy(model)
    if batches:
        update_bn(batches, twin)
    return twin


def fit(
    model: nn.Module, stage: StageSettings, draw: Draw, folder: Path, *, name: str, score: Score,
    teacher: Callable[[Tensor], Tensor] | None = None,
    events: Mapping[int, Callable[[nn.Module], None]] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Fit:
    """Train a copy of `model`; continue where an earlier call with the same arguments was stopped.

    Args:
        model: maps (B, 3, p, p) in 0..255 to (B, 3, 3p, 3p); left unchanged. One that draws random
            numbers has a method `before_step(step, rank)`, which makes them follow from those.
        folder: where the training state lies; locked while training, not once it is finished.
        score: called with the EMA model every `validate_every` steps and at the end.
        teacher: computes targets in 0..1 from LR patches (B, 3, p, p) in 0..255, without gradient.
        events: called with the trained model and with its EMA before the step that is their key.
        identity: what else must be unchanged for a stopped training to be continued.

    Raises:
        UserError: the folder is locked, cannot be written, or holds a training with other settings;
            the loss is not finite; the stage distils and has no teacher.
    """
    keep_freed_memory()
    finished = any(folder.glob(f"state-{stage.steps:06d}-*"))
    # under torchrun the first process holds the lock and writes; all of them read the state
    first_process = os.environ.get("RANK", "0") == "0"
    with ExitStack() as held:
        if first_process and not finished:
            held.enter_context(file_lock(folder / "lock"))
        processes()
        accelerator = Accelerator()
        schedule = stage.model_dump(mode="json", exclude={"expect", "checkpoint_every", "keep"})
        identity = flatten("stage", schedule) | dict(identity or {})
        state = TrainingState.begin(model, stage)
        if saved := load_state(folder, identity):
            state.restore(saved, saved["path"])
        if first_process and finished and state.step < stage.steps:  # the last state is damaged
            held.enter_context(file_lock(folder / "lock"))
        first, spent, began = state.step, state.seconds, time.monotonic()
        # the faster layout on CPU and GPU; to be set before DDP wraps the model
        state.live = state.live.to(accelerator.device, memory_format=torch.channels_last)
        state.ema.to(accelerator.device)
        trained, state.optimizer = accelerator.prepare(state.live, state.optimizer)
        progress, psnr = Progress(f"{name}: step", stage.steps, first,
                                  quiet=not accelerator.is_main_process), ""

        for step in range(first, stage.steps):
            if events and step in events:
                events[step](state.live)
                events[step](state.ema.module)
            if hasattr(state.live, "before_step"):
                state.live.before_step(step, accelerator.process_index)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            batch = draw(step, accelerator.process_index, accelerator.num_processes)
            terms = _step(trained, state.optimizer, stage, batch, teacher,
                          step / stage.steps, accelerator)
            clip_weights(state.live, stage)
            state.ema.update(state.live, step=step + 1)
            if not math.isfinite(terms["loss"]):
                raise UserError(f"{name}: the loss is {terms['loss']} at step {step}. Lower "
                                f"{name}.lr; the last good state is in {folder}.")
            state.count(terms)
            state.step = step + 1
            last = state.step == stage.steps
            if last or state.step % stage.validate_every == 0:
                scores = score(state.ema.module)
                psnr = f" psnr {scores['psnr_rgb']:.2f} dB"
                state.validated(scores, learning_rate(stage, step),
                                spent + time.monotonic() - began)
            if accelerator.is_main_process and (last or state.step % stage.checkpoint_every == 0):
                save_state(folder, state.step,
                           state.saved(identity, spent + time.monotonic() - began))
                history = pd.DataFrame(state.history)
                write_text(folder / "history.csv", history.to_csv(index=False))
            progress.update(state.step, stage.steps, f" loss {terms['loss']:.4f}{psnr}")

        progress.close()
        result, kept = state.ema.module.to("cpu"), stage.steps
        if stage.keep == "best":
            result.load_state_dict(state.best)
            kept = state.best_step
        return Fit(result.eval(), state.best_step, state.best_psnr, state.history, first, kept)


def _step(trained: nn.Module, optimizer: torch.optim.Optimizer, stage: StageSettings, batch: Batch,
          teacher: Callable[[Tensor], Tensor] | None, progress: float,
          accelerator: Accelerator) -> dict[str, float]:
    """One optimiser step on this process's share of a batch; the loss and its terms, of all."""
    optimizer.zero_grad(set_to_none=True)
    device = accelerator.device
    lr = batch.lr.to(device).float().contiguous(memory_format=torch.channels_last)
    target = target_01(stage.loss, batch, lr, teacher)
    loss, terms = stage_loss(stage.loss, trained(lr), batch.hr.to(device).float(), target, progress)
    accelerator.backward(loss)
    if stage.clip_grad > 0:
        accelerator.clip_grad_norm_(trained.parameters(), stage.clip_grad)
    optimizer.step()
    totals = terms | {"loss": loss.detach()}
    means = accelerator.reduce(torch.stack(list(totals.values())), "mean").tolist()
    return dict(zip(totals, means, strict=True))
