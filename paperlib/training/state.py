"""Training state, in memory and on disk: a run killed at any moment continues to the same weights.

One file holds everything that a training needs and carries its own hash in its name:
`state-000500-3f2a….pt`. The last two are kept: a damaged one costs the steps since the one before.
"""

import copy
import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import atomic_path, reading
from paperlib.settings import StageSettings

KEEP = 2
_NAME = re.compile(r"state-(\d+)-([0-9a-f]{16})\.pt")
_PLAIN = ("step", "history", "window", "best", "best_step", "best_psnr", "seconds")
"""Fields of a `TrainingState` that are saved as they are."""


def make_optimiser(parameters: Iterable[nn.Parameter],
                   stage: StageSettings) -> torch.optim.Optimizer:
    """The optimiser of a stage: Adam, as published (paper section 4), or SOAP (ours).

    SOAP (arXiv 2409.11321) is Adam in the eigenbasis of Shampoo's preconditioner.
    """
    if stage.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=stage.lr, fused=True)
    from pytorch_optimizer import SOAP  # loads a hundred other optimisers

    # eigenbases are updated every ten steps, as its authors do; a side above 400 gets none
    soap = SOAP(parameters, lr=stage.lr, betas=(0.95, 0.95), weight_decay=0.0,
                precondition_frequency=10, max_precondition_dim=400)
    threads: list[int] = []  # with hundreds of small matrices several would wait for each other

    def before(*_: Any) -> None:
        threads.append(torch.get_num_threads())
        torch.set_num_threads(1)

    soap.register_step_pre_hook(before)
    soap.register_step_post_hook(lambda *_: torch.set_num_threads(threads.pop()))
    return soap


@dataclass
class TrainingState:
    """All that a training is between two steps."""

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
        """A training that has not begun, from a copy of `model`; BN statistics are averaged too."""
        keep_buffers = not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        ema = ModelEmaV3(model, decay=stage.ema, use_warmup=stage.ema_warmup,
                         exclude_buffers=keep_buffers)
        live = copy.deepcopy(model).train()
        return cls(live, ema, make_optimiser(live.parameters(), stage))

    def restore(self, saved: Mapping[str, Any], path: Path) -> None:
        """Go on from what `saved` gave, read from `path`; another network's is a UserError."""
        with reading(path, "a state of this training"):
            self.live.load_state_dict(saved["live"], strict=True)
            self.ema.module.load_state_dict(saved["ema"], strict=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            for name in _PLAIN:
                setattr(self, name, saved[name])

    def saved(self, identity: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Everything as a dict for `save_state`; `seconds` is the time spent by now."""
        return {"identity": dict(identity), "live": self.live.state_dict(),
                "ema": self.ema.module.state_dict(), "optimizer": self.optimizer.state_dict()} | {
                    name: getattr(self, name) for name in _PLAIN} | {"seconds": seconds}

    def count(self, terms: Mapping[str, float]) -> None:
        """Add a step's loss and its terms to the window."""
        for key, value in terms.items():
            total, count = self.window.get(key, (0.0, 0))
            self.window[key] = [total + value, count + 1]

    def validated(self, scores: Mapping[str, float], rate: float, seconds: float) -> None:
        """A row of the history: means of the window, which ends here, and scores."""
        means = {key: total / count for key, (total, count) in self.window.items()}
        self.history.append({"step": self.step, "lr": rate} | means | dict(scores)
                            | {"seconds": seconds})
        self.window = {}
        if scores["psnr_rgb"] > self.best_psnr:
            self.best_psnr, self.best_step = scores["psnr_rgb"], self.step
            self.best = {key: value.detach().cpu().clone()
                         for key, value in self.ema.module.state_dict().items()}


def _states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    found = [path for path in folder.glob("state-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a state atomically, then drop all but the last `KEEP`; a failed write touches none."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"state-{step:06d}-{sha256(data).hexdigest()[:16]}.pt"
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    others = [old for old in _states(folder) if old != path]
    for old in others[KEEP - 1 :]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest sound state of a folder, its file under "path", or None where there is none.

    Args:
        identity: flat dict of what must be the same for the training to continue (settings, start
            weights, data); a state with another is a UserError that lists the differences.
    """
    damaged, found = [], None
    for path in _states(folder):
        try:
            with reading(path, "a training state"):
                data = path.read_bytes()
        except UserError:
            if os.path.lexists(path):
                raise
            continue  # another process of the same training found it damaged
        if sha256(data).hexdigest()[:16] != path.stem[-16:]:
            damaged.append(path)
            continue
        with reading(path, "a training state"):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            old, found["path"] = dict(found["identity"]), path
            changed = [f"{key}: {old.get(key)!r:.100} → {identity.get(key)!r:.100}"
                       for key in sorted(old | identity) if old.get(key) != identity.get(key)]
            if changed:
                raise UserError(
                    f"{folder} holds a training (step {found['step']}) with other settings: "
                    f"{'; '.join(changed[:6])}. Delete that folder to train anew, restore the "
                    "settings to continue, or choose another --out.")
        break
    for path in damaged:  # it would keep the place of a sound one
        path.unlink(missing_ok=True)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        where = f"going back to step {found['step']}" if found else (
            "there is no sound one: the training starts anew")
        warnings.warn(f"{names} in {folder} is damaged and removed; {where}", stacklevel=2)
    return found
