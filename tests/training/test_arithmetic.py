"""What `fit` does in a step, against the same arithmetic written out: λ(t), clipping, Adam, EMA, in this order."""

import copy
import math

import pytest
import torch
from torch import nn

from paperlib.data.dataset import Batch
from paperlib.settings import LossSettings, StageSettings, StudentSettings
from paperlib.student.network import Student
from paperlib.training.loop import fit

STEPS = 8
L1 = LossSettings(l1=1.0)
DISTILS = LossSettings(l1=1.0, kd=2.0, kd_mid=1.0, kd_low=4.0, kd_p1=0.25, kd_p2=0.75, confidence=False)
LAMBDA = (2.0, 2.0, 2.0, 1.75, 1.5, 1.25, 4.0, 4.0)
"""λ(t) of `DISTILS` over eight steps: high, falling from a quarter on, low from three quarters on."""


def stage(**changes) -> StageSettings:
    plain = {"steps": STEPS, "batch": 4, "patch": 8, "lr": 1e-3, "decay": "constant", "clip_grad": 0, "clip_body": 0,
             "clip_ends": 0, "ema": 0.5, "validate_every": STEPS, "checkpoint_every": STEPS, "loss": L1}
    return StageSettings(**plain | changes)


def draw(step: int, rank: int, world: int) -> Batch:
    """Patches that depend on the step alone; the teacher is a much darker original."""
    generator = torch.Generator().manual_seed(step)
    lr = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    hr = lr.repeat_interleave(3, 2).repeat_interleave(3, 3)
    return Batch(lr, hr, hr // 16, [])


def start() -> Student:
    torch.manual_seed(7)
    return Student(StudentSettings(channels=4, blocks=1, branches=2))


def by_hand(model: nn.Module, settings: StageSettings) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model after the stage, and the average of its weights and statistics."""
    live = copy.deepcopy(model).train()
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in live.parameters()]
    average = {}
    for step in range(STEPS):
        batch = draw(step, 0, 1)
        hr, teacher = batch.hr.float() / 255, batch.teacher.float() / 255
        sr = live(batch.lr.float()) / 255
        loss = (sr - hr).abs().mean()
        if settings.loss.kd:
            constant = settings.loss.kd_mid is None
            loss = loss + (settings.loss.kd if constant else LAMBDA[step]) * (sr - teacher).abs().mean()
        gradients = torch.autograd.grad(loss, list(live.parameters()))
        norm = math.sqrt(sum(float(part.square().sum()) for part in gradients))
        factor = min(1.0, settings.clip_grad / (norm + 1e-6)) if settings.clip_grad else 1.0
        with torch.no_grad():
            for weight, gradient, (first, second) in zip(live.parameters(), gradients, moments, strict=True):
                first.mul_(0.9).add_(0.1 * factor * gradient)
                second.mul_(0.999).add_(0.001 * (factor * gradient) ** 2)
                corrected = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                weight -= settings.lr * first / (1 - 0.9 ** (step + 1)) / corrected
            for name, weight in live.named_parameters():
                limit = settings.clip_body if name.startswith("body") else settings.clip_ends
                if weight.ndim == 4 and limit:
                    weight.clamp_(-limit, limit)
        decay = min(settings.ema, 1 - (1 + step) ** (-2 / 3)) if settings.ema_warmup else settings.ema
        for name, value in live.state_dict().items():  # the average begins with the weights after the first step
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value if step else value.clone()
    return live, average


def fitted(folder, settings: StageSettings) -> dict[str, torch.Tensor]:
    result = fit(start(), settings, draw, folder, name="t", score=lambda _: {"psnr_rgb": 0.0})
    return result.model.state_dict()


CASES = {
    "plain": {}, "λ(t)": {"loss": DISTILS}, "gradient clip": {"clip_grad": 1e-7, "lr": 0.02},
    "weight clip": {"clip_body": 0.05, "clip_ends": 0.03, "lr": 0.01}, "slow average": {"ema": 0.9, "lr": 0.01},
    "average that begins fast": {"ema": 0.9, "ema_warmup": True, "lr": 0.01},
}


@pytest.mark.parametrize("name", CASES)
def test_a_stage_is_its_arithmetic(name, tmp_path):
    settings = stage(**CASES[name])
    _, average = by_hand(start(), settings)
    found = fitted(tmp_path, settings)
    for key, value in average.items():
        torch.testing.assert_close(found[key], value, rtol=2e-4, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_a_stage_keeps_the_best_or_the_last_average(tmp_path):
    scores = iter((1.0, 3.0, 2.0, 1.0))
    settings, score = stage(validate_every=2), lambda _: {"psnr_rgb": next(scores)}
    best = fit(start(), settings, draw, tmp_path / "a", name="t", score=score)
    last = fit(start(), stage(validate_every=2, keep="last"), draw, tmp_path / "a", name="t", score=score)
    assert (best.kept_step, best.best_step) == (4, 4)
    assert (last.kept_step, last.best_step, last.resumed_from) == (8, 4, 8)  # nothing is trained again
    weight = by_hand(start(), settings)[1]["stem.weight"]
    torch.testing.assert_close(last.model.stem.weight, weight, rtol=2e-4, atol=2e-5)
    assert float((best.model.stem.weight.detach() - weight).abs().max()) > 1e-3
