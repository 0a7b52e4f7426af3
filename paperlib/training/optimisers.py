"""The optimisers of a stage: Adam, as published (paper section 4), and SOAP (ours).

SOAP (arXiv 2409.11321) is Adam in the eigenbasis of Shampoo's preconditioner: each kernel's gradient is turned into the
directions in which it varies, and scaled there.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.settings import StageSettings

BASIS_EVERY = 10
"""Steps between two updates of SOAP's eigenbases (its authors' choice)."""
LARGEST_SIDE = 400
"""A side of a kernel longer than this gets no eigenbasis."""


def make_optimiser(parameters: Iterable[nn.Parameter], stage: StageSettings) -> torch.optim.Optimizer:
    """The optimiser that a stage's settings name, for parameters whose gradients are not yet there."""
    if stage.optimizer == "soap":
        from pytorch_optimizer import SOAP  # loads a hundred other optimisers

        soap = SOAP(parameters, lr=stage.lr, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=BASIS_EVERY,
                    max_precondition_dim=LARGEST_SIDE)
        _step_in_one_thread(soap)
        return soap
    return torch.optim.Adam(parameters, lr=stage.lr, fused=True)


def _step_in_one_thread(optimiser: torch.optim.Optimizer) -> None:
    """Hundreds of products of small matrices, on which several threads would mostly wait for each other."""
    threads: list[int] = []

    def before(*_: Any) -> None:
        threads.append(torch.get_num_threads())
        torch.set_num_threads(1)

    def after(*_: Any) -> None:
        torch.set_num_threads(threads.pop())

    optimiser.register_step_pre_hook(before)
    optimiser.register_step_post_hook(after)


def moment_shapes(optimiser: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any]:
    """What the optimiser keeps for a weight, for checking a saved state: name → shape, list of shapes, or value.

    A side without an eigenbasis has None in the list.
    """
    moments: dict[str, Any] = {"exp_avg": weight.shape, "exp_avg_sq": weight.shape}
    if isinstance(optimiser, torch.optim.Adam):
        return moments | {"step": torch.Size(())}
    several = weight.ndim > 1
    sides = [torch.Size((side, side)) if several and side <= LARGEST_SIDE else None for side in weight.shape]
    group = optimiser.param_groups[0]
    return moments | {"GG": sides, "Q": sides, "precondition_frequency": group["precondition_frequency"],
                      "shampoo_beta": group["betas"][1]}
