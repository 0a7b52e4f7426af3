"""How much each term of a stage's loss has to say: shares of the value and of the gradient (paper section 3).

A term moves the weights by its gradient, not by its value: a Charbonnier of 0.02 has a gradient of the size of an L1's,
whatever it is worth. Whether a teacher can matter at its published weight is read here before any training.
"""

import copy
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.data.dataset import Batch
from paperlib.settings import LossSettings
from paperlib.training.losses import weighted_terms


def loss_shares(
    model: nn.Module, batch: Batch, settings: LossSettings, teacher: Callable[[Tensor], Tensor] | None = None,
    progress: float = 0.0,
) -> pd.DataFrame:
    """Each term of the loss on one batch, in training mode; the model is left as it was.

    Args:
        model: (B, 3, p, p) in 0..255 → (B, 3, 3p, 3p) in 0..255.
        batch: its `teacher` is the target, if it has one.
        teacher: else computes targets in 0..1 from LR patches in 0..255.
        progress: fraction of the stage that is done, 0..1, for λ(t).

    Returns:
        One line a term: `term`, `weight`, `value` (before weighting), `value share` (of the weighted sum),
        `gradient norm` (of the weighted term, over all weights of the model) and `gradient share` (of the norms' sum).

    Raises:
        UserError: the settings ask for distillation and there is no target.
    """
    model = copy.deepcopy(model).train()
    weights = [value for value in model.parameters() if value.requires_grad]
    lr, target = batch.lr.float(), None
    if batch.teacher is not None:
        target = batch.teacher.float() / 255
    elif teacher is not None:
        target = teacher(lr)
    terms = weighted_terms(settings, model(lr), batch.hr.float(), target, progress)
    lines = []
    for name, (weight, value) in terms.items():
        norm = 0.0
        if weight > 0:
            gradients = torch.autograd.grad(weight * value, weights, retain_graph=True, allow_unused=True)
            norm = float(torch.stack([part.norm() for part in gradients if part is not None]).norm())
        lines.append({"term": name, "weight": weight, "value": float(value.detach()), "gradient norm": norm})
    table = pd.DataFrame(lines)
    parts = table["weight"] * table["value"]
    table.insert(3, "value share", parts / parts.sum())
    return table.assign(**{"gradient share": table["gradient norm"] / table["gradient norm"].sum()})
