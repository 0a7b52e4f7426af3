"""What a training state must be before anything is taken from it: fields, names, types, shapes, finite numbers.

PyTorch itself casts weights of another type silently, and steps with moments of another shape into foreign memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from paperlib.errors import UserError
from paperlib.student.checkpoint import plain
from paperlib.training.optimisers import moment_shapes

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=True)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Plain = str | int | float | bool | None
Row = Annotated[dict[str, Number], Field(min_length=1)]


class Content(BaseModel):
    """The fields of a state file; those with a value here may be missing in a state of an older version."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)

    identity: dict[str, Plain | list[Plain]]
    step: Count
    live: dict[str, Tensor]
    ema: dict[str, Tensor] = {}
    optimizer: dict[str, Any] = {}
    history: list[Row] = []
    window: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]] = {}
    best: dict[str, Tensor] | None = None
    best_step: Count = 0
    best_psnr: float = float("-inf")
    seconds: Seconds = 0.0

    @model_validator(mode="after")
    def _best_is_one(self) -> Self:
        if self.best_psnr != self.best_psnr or (self.best is None) != (self.best_step == 0):
            raise ValueError("best, best_step and best_psnr do not fit each other")
        return self


def check_content(state: Any, path: Path) -> None:
    """Refuse a state that has not the fields of one.

    Raises:
        UserError: it has not; the file is named.
    """
    try:
        Content.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise _refusal(path, f"{place}: {first['msg'].removeprefix('Value error, ')}", "of this version") from error


def check_fit(state: Mapping[str, Any], model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, steps: int,
              path: Path) -> None:
    """Refuse a state whose tensors are not those of this training, by name, type, shape and value.

    Args:
        state: content that `check_content` has seen.
        model: weights of the network, as it begins.
        optimizer: of that network, before its first step.
        steps: how many the training has.

    Raises:
        UserError: they are not; the file is named.
    """
    try:
        if state["step"] > steps:
            raise ValueError(f"step {state['step']} of a training of {steps}")
        for part in ("live", "ema", "best"):
            if part != "best" or state.get("best") is not None:
                _same_tensors(part, state[part], model)
        _same_optimizer(state["optimizer"], optimizer, state["step"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        words = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise _refusal(path, words, "of this network") from error


def _refusal(path: Path, words: str, kind: str) -> UserError:
    short = " ".join(words.split())[:200]
    return UserError(f"{path} is no training state {kind} ({short}). Delete it to go on from the state before it, or "
                     "choose another --out.")


def _same_tensors(part: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    if odd := sorted(given.keys() ^ wanted.keys()):
        raise ValueError(f"{part} differs at {', '.join(odd[:3])}")
    for name, value in wanted.items():
        _same_tensor(f"{part} {name}", given[name], value.dtype, value.shape)


def _same_tensor(name: str, given: Any, kind: torch.dtype, shape: torch.Size) -> None:
    if not isinstance(given, Tensor) or not plain(given):
        raise ValueError(f"{name} is no dense tensor")
    if given.dtype != kind or given.shape != shape:
        raise ValueError(f"{name} is {_described(given.dtype, given.shape)}, not {_described(kind, shape)}")
    if kind.is_floating_point and not given.isfinite().all():
        raise ValueError(f"{name} has weights that are not finite")


def _described(kind: torch.dtype, shape: torch.Size) -> str:
    return f"{str(kind).removeprefix('torch.')} {tuple(shape)}"


def _same_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, saved_step: int) -> None:
    """Its groups are those of a fresh one, as far as both know a setting, and its moments those of each weight.

    A group that counts steps has counted those of the training.
    """
    for group, fresh in zip(saved["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        known = {key: group.get(key, value) for key, value in fresh.items() if key != "params"} | {
            "params": group["params"], "lr": fresh["lr"]}  # the rate is set anew before each step
        if known != fresh or group.get("step", saved_step) != saved_step:
            raise ValueError("the optimiser has other settings")
    if not saved["state"]:
        raise ValueError("the optimiser has no moments")
    parameters = dict(enumerate(value for group in optimizer.param_groups for value in group["params"]))
    for index, moments in saved["state"].items():
        if index not in parameters:
            raise ValueError(f"the optimiser has no moments of this network at {index}")
        _same_moments(index, moments, moment_shapes(optimizer, parameters[index]), parameters[index].dtype)


def _same_moments(index: int, moments: Mapping[str, Any], kept: Mapping[str, Any], kind: torch.dtype) -> None:
    """Every tensor that the optimiser keeps for a weight is there and has its shape; a list has one for each side."""
    if not kept.keys() <= moments.keys():
        raise ValueError(f"the optimiser has no moments of this network at {index}")
    for name, wanted in kept.items():
        given, what = moments[name], f"the optimiser's {name}"
        if isinstance(wanted, torch.Size):
            _same_tensor(what, given, torch.float32 if name == "step" else kind, wanted)
        elif not isinstance(wanted, list):
            if type(given) is not type(wanted) or given != wanted:
                raise ValueError(f"{what} is another")
        elif not isinstance(given, list) or len(given) != len(wanted):
            raise ValueError(f"{what} has not one matrix a side")
        else:
            for matrix, shape in zip(given, wanted, strict=True):
                if shape is not None:
                    _same_tensor(what, matrix, kind, shape)
                elif not isinstance(matrix, list) or matrix:
                    raise ValueError(f"{what} has a matrix for a side without one")
