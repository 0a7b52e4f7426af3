"""Training state, in memory and on disk: a run killed at any moment continues to the same weights.

One file holds everything a training needs (weights, EMA, optimiser, best weights, history, random state), is written
atomically, and carries its own hash in its name: `state-000500-3f2a….pt`. The last two are kept, so a damaged newest
one costs only the steps since the one before.
"""

import copy
import io
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import atomic_path
from paperlib.settings import StageSettings
from paperlib.student.checkpoint import open_pickle
from paperlib.training.optimisers import make_optimiser
from paperlib.training.state_check import check_content, check_fit

_NAME = re.compile(r"state-(\d+)-([0-9a-f]{16})\.pt")
KEEP = 2


@dataclass
class TrainingState:
    """All that a training is between two steps: weights, their average, the optimiser, the best weights, the log."""

    live: nn.Module
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    window: dict[str, list[float]] = field(default_factory=dict)
    """Sum and count of each loss term since the last row of the history."""
    best: dict[str, Tensor] | None = None
    best_step: int = 0
    best_psnr: float = -math.inf
    seconds: float = 0.0
    """Time spent in training, over all resumed parts."""

    @classmethod
    def begin(cls, model: nn.Module, stage: StageSettings) -> Self:
        """A training that has not begun, from a copy of `model`; BN statistics are averaged only where there are any.
        """
        keep_buffers = not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        ema = ModelEmaV3(model, decay=stage.ema, use_warmup=stage.ema_warmup, exclude_buffers=keep_buffers)
        live = copy.deepcopy(model).train()
        return cls(live, ema, make_optimiser(live.parameters(), stage))

    def restore(self, saved: Mapping[str, Any], path: Path, steps: int) -> None:
        """Go on from what `saved` wrote, read from a file, in a training of so many steps.

        Raises:
            UserError: its tensors are those of another training, of another type, or not finite.
        """
        check_fit(saved, self.live.state_dict(), self.optimizer, steps, path)
        self.live.load_state_dict(saved["live"])
        self.ema.module.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name in _PLAIN:
            setattr(self, name, saved.get(name, getattr(self, name)))

    def saved(self, identity: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Everything as a dict for `save_state`; `seconds` is the time spent by now."""
        return {"identity": dict(identity), "live": self.live.state_dict(), "ema": self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict()} | {
                    name: getattr(self, name) for name in _PLAIN} | {"seconds": seconds}

    def count(self, terms: Mapping[str, float]) -> None:
        """Add a step's loss and its terms to the window."""
        for key, value in terms.items():
            total, count = self.window.get(key, (0.0, 0))
            self.window[key] = [total + value, count + 1]

    def validated(self, scores: Mapping[str, float], rate: float, seconds: float) -> None:
        """A row of the history: means of the window, which ends here, and scores; keeps the weights if they are best.
        """
        means = {key: total / count for key, (total, count) in self.window.items()}
        self.history.append({"step": self.step, "lr": rate} | means | dict(scores) | {"seconds": seconds})
        self.window = {}
        if scores["psnr_rgb"] > self.best_psnr:
            self.best_psnr, self.best_step = scores["psnr_rgb"], self.step
            self.best = {key: value.detach().cpu().clone() for key, value in self.ema.module.state_dict().items()}


_PLAIN = ("step", "history", "window", "best", "best_step", "best_psnr", "seconds")
"""Fields of a `TrainingState` that are saved as they are."""


def _states(folder: Path) -> list[tuple[int, str, Path]]:
    """(step, hash, path) of the states in a folder, newest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.glob("state-*.pt"))
    return sorted(((int(match[1]), match[2], path) for match, path in found if match), reverse=True)


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a state atomically, then drop all but the last `KEEP`.

    Raises:
        UserError: the folder cannot be written or the disk is full; earlier states are untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"state-{step:06d}-{sha256(data).hexdigest()[:16]}.pt"
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    others = [old for _, _, old in _states(folder) if old != path]
    for old in others[KEEP - 1 :]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The newest sound state of a folder, its file under "path", or None where there is none.

    Args:
        identity: flat dict of what must be the same for the training to continue (settings, start weights, data).
        defaults: values of settings that a state from an older version of this kit does not know.

    Raises:
        UserError: the state belongs to other settings; the differences are listed.
    """
    damaged: list[Path] = []
    found = None
    for step, digest, path in _states(folder):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # another process of the same training found it damaged
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}. Delete it to go on from the state "
                            "before it, or choose another --out.") from error
        if sha256(data).hexdigest()[:16] != digest:
            damaged.append(path)
            continue
        state = _open(path, data)
        _compare((defaults or {}) | state["identity"], identity, folder, step)
        found = state | {"path": path}
        break
    for path in damaged:  # it would keep the place of a sound one
        path.unlink(missing_ok=True)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        where = "there is no sound one: the training starts anew" if found is None else f"going back to step {step}"
        warnings.warn(f"{names} in {folder} is damaged and removed; {where}", stacklevel=2)
    return found


def read_state(path: Path) -> dict[str, Any]:
    """The content of one state file, whatever training it is of.

    Raises:
        UserError: it cannot be read, is damaged, or no state of this version.
    """
    match = _NAME.fullmatch(path.name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}. Name a training's state file.") from error
    if match is None or sha256(data).hexdigest()[:16] != match[2]:
        raise UserError(f"{path} is damaged, or no state file: its name does not hold its hash. Name another one.")
    return _open(path, data)


def _open(path: Path, data: bytes) -> dict[str, Any]:
    """The content of a state file whose hash is right.

    Raises:
        UserError: it is no training state of this version.
    """
    try:
        state = open_pickle(io.BytesIO(data))
    except Exception as error:  # torch raises many kinds for a foreign pickle
        raise UserError(f"{path} is no training state ({type(error).__name__}). Delete it to go on from the state "
                        "before it.") from error
    check_content(state, path)
    return state


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Path, step: int) -> None:
    changed = [f"{key[:80]}: {_short(old.get(key))} → {_short(new.get(key))}"
               for key in sorted(set(old) | set(new)) if old.get(key) != new.get(key)]
    if changed:
        raise UserError(
            f"{folder} holds a training (step {step}) with other settings: {'; '.join(changed[:6])}. "
            "Delete that folder to train anew, restore the settings to continue, or choose another --out.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:97] + "..."
