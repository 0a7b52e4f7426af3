"""The training loop: its steps against the same arithmetic written out, schedules, logs, refusals."""

import copy
import math
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from paperlib.data.dataset import Batch
from paperlib.errors import UserError
from paperlib.files import file_lock
from paperlib.reporting.figures import curves
from paperlib.settings import LossSettings, StageSettings, StudentSettings
from paperlib.student.models import fuse_model
from paperlib.student.network import Student, with_form
from paperlib.training.loop import fit, learning_rate, recalibrate_bn
from paperlib.training.losses import stage_loss
from paperlib.training.state import make_optimiser

SMALL = StudentSettings(channels=4, blocks=1, branches=2)


def stage(**changes) -> StageSettings:
    values = {"steps": 6, "batch": 4, "patch": 8, "lr": 1e-3, "decay": "constant", "validate_every": 2,
              "checkpoint_every": 2, "loss": LossSettings(l1=1.0)} | changes
    return StageSettings(**values)


def draw(step: int, rank: int, world: int) -> Batch:
    """Four patches that depend on the step alone; the teacher is a much darker original."""
    generator = torch.Generator().manual_seed(step)
    lr = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    hr = lr.repeat_interleave(3, 2).repeat_interleave(3, 3)
    return Batch(lr, hr, hr // 16, [])


def score(model: nn.Module) -> dict[str, float]:
    """A stand-in validation score: closeness to nearest-neighbour upscaling on one fixed batch."""
    batch = draw(10_000, 0, 1)
    with torch.no_grad():
        error = (model(batch.lr.float()) - batch.hr.float()).square().mean().item()
    return {"psnr_rgb": 10 * math.log10(255**2 / error)}


def test_learning_rate_warms_up_and_decays():
    cosine = stage(steps=100, warmup=0.1, decay="cosine")
    assert learning_rate(cosine, 0) == pytest.approx(1e-4)
    assert learning_rate(cosine, 9) == pytest.approx(1e-3)
    assert learning_rate(cosine, 55) == pytest.approx(5e-4)
    assert learning_rate(cosine, 99) < 1e-6
    held = stage(steps=100, warmup=0.1, decay="cosine", hold=0.5)
    assert [learning_rate(held, step) for step in (9, 10, 54)] == [pytest.approx(1e-3)] * 3
    assert learning_rate(held, 77) == pytest.approx(5e-4, rel=0.05)
    halving = stage(steps=100, decay="halve", halve_every=40)
    assert [learning_rate(halving, step) for step in (0, 39, 40, 80)] == [1e-3, 1e-3, 5e-4, 2.5e-4]


@pytest.mark.parametrize(("form", "optimizer"), [("expanded", "adam"), ("collapsed", "adam"), ("collapsed", "soap")])
def test_training_improves_and_leaves_its_start_alone(tmp_path, form, optimizer):
    start = with_form(Student(SMALL), form)
    before = copy.deepcopy(start.state_dict())
    thirty = stage(steps=30, validate_every=15, ema=0.5, optimizer=optimizer)
    result = fit(start, thirty, draw, tmp_path, name="t", score=score)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.best_psnr > score(start.eval())["psnr_rgb"]
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
    assert score(result.model)["psnr_rgb"] == pytest.approx(result.best_psnr)


def test_distillation_uses_the_batchs_or_the_computed_target(tmp_path):
    start, distil = fuse_model(Student(SMALL)), stage(loss=LossSettings(charbonnier=1.0, kd=0.5))
    cached = fit(start, distil, draw, tmp_path / "cached", name="t", score=score)

    def without_teacher(step, rank, world):
        return replace(draw(step, rank, world), teacher=None)

    computed = fit(start, distil, without_teacher, tmp_path / "computed", name="t", score=score,
                   teacher=lambda lr: (lr // 16).repeat_interleave(3, 2).repeat_interleave(3, 3) / 255)
    assert cached.history[-1]["kd"] == pytest.approx(computed.history[-1]["kd"], rel=1e-6)
    with pytest.raises(UserError, match="no teacher"):
        fit(start, distil, without_teacher, tmp_path / "none", name="t", score=score)


def test_a_term_whose_weight_falls_to_0_is_logged_to_the_end(tmp_path):
    start = fuse_model(Student(SMALL))
    loss = LossSettings(charbonnier=1.0, kd=0.5, kd_mid=0.2, kd_low=0.0, kd_p1=0.2, kd_p2=0.5)
    still = stage(steps=8, lr=1e-12, clip_body=0, clip_ends=0, validate_every=4, loss=loss)
    result = fit(start, still, draw, tmp_path, name="t", score=score)
    expected: dict[str, list[float]] = {"kd": [], "loss": []}
    for step in range(8):
        batch = draw(step, 0, 1)
        with torch.no_grad():
            total, terms = stage_loss(loss, start(batch.lr.float()), batch.hr.float(), batch.teacher.float() / 255,
                                      step / 8)
        expected["kd"].append(float(terms["kd"]))
        expected["loss"].append(float(total))
    for index, row in enumerate(result.history):
        for name, values in expected.items():
            assert row[name] == pytest.approx(sum(values[4 * index : 4 * index + 4]) / 4, rel=1e-5), (name, index)
    assert expected["loss"][-1] == pytest.approx(float(terms["charbonnier"]), rel=1e-6)  # λ was 0 there
    assert len(curves(result.history).axes[0].lines) == 3  # loss, Charbonnier, distillation


def test_nan_loss_stops_with_advice(tmp_path):
    start = Student(SMALL)
    nn.init.constant_(start.stem.bias, math.nan)
    with pytest.raises(UserError, match=r"Lower stage1\.lr"):
        fit(start, stage(), draw, tmp_path, name="stage1", score=score)


def test_events_reach_model_and_ema_once(tmp_path):
    seen = []
    fit(Student(SMALL), stage(), draw, tmp_path, name="t", score=score, events={3: seen.append})
    assert len(seen) == 2
    assert seen[0] is not seen[1]


def test_statistics_have_the_same_bits_in_any_number_of_threads():
    torch.manual_seed(0)
    model, batches, found = Student(StudentSettings(blocks=2)), [255 * torch.rand(8, 3, 64, 64)], []
    before = torch.get_num_threads()
    for threads in (2, 1):
        torch.set_num_threads(threads)
        found.append(recalibrate_bn(model, batches).state_dict())
    torch.set_num_threads(before)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_two_trainings_in_one_folder_are_refused_and_a_finished_one_is_for_all(tmp_path):
    train = lambda: fit(Student(SMALL), stage(), draw, tmp_path, name="t", score=score)
    with file_lock(tmp_path / "lock"), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        train()
    done = train()
    with file_lock(tmp_path / "lock"):
        assert train().best_psnr == done.best_psnr


def test_soap_is_that_of_its_authors_in_one_thread(monkeypatch):
    seen, threads, weight = [], torch.get_num_threads(), nn.Parameter(torch.ones(3, 4))
    optimiser = make_optimiser([weight], stage(optimizer="soap", lr=2e-3))
    fixed = {"lr": 2e-3, "betas": (0.95, 0.95), "weight_decay": 0.0, "precondition_frequency": 10,
             "max_precondition_dim": 400}
    assert {name: optimiser.param_groups[0][name] for name in fixed} == fixed
    weight.grad = torch.ones_like(weight)
    monkeypatch.setattr(optimiser, "init_group", lambda group, init=optimiser.init_group: (
        seen.append(torch.get_num_threads()), init(group)))
    torch.set_num_threads(2)
    try:
        optimiser.step()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]


STEPS = 8
DISTILS = LossSettings(l1=1.0, kd=2.0, kd_mid=1.0, kd_low=4.0, kd_p1=0.25, kd_p2=0.75, confidence=False)
LAMBDA = (2.0, 2.0, 2.0, 1.75, 1.5, 1.25, 4.0, 4.0)
"""λ(t) of `DISTILS` over eight steps: high, falling from a quarter on, low from three quarters on."""


def bare(**changes) -> StageSettings:
    """A stage that clips nothing, averages fast and is validated at its end."""
    plain = {"steps": STEPS, "clip_grad": 0, "clip_body": 0, "clip_ends": 0, "ema": 0.5, "validate_every": STEPS,
             "checkpoint_every": STEPS}
    return stage(**plain | changes)


def start() -> Student:
    torch.manual_seed(7)
    return Student(SMALL)


def by_hand(model: nn.Module, settings: StageSettings) -> dict[str, torch.Tensor]:
    """The average of a model's weights and statistics after the stage."""
    live = copy.deepcopy(model).train()
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in live.parameters()]
    average = {}
    for step in range(STEPS):
        batch = draw(step, 0, 1)
        hr, teacher = batch.hr.float() / 255, batch.teacher.float() / 255
        sr = live(batch.lr.float()) / 255
        loss = (sr - hr).abs().mean()
        if settings.loss.kd:
            loss = loss + LAMBDA[step] * (sr - teacher).abs().mean()
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
    return average


CASES = {
    "plain": {}, "λ(t)": {"loss": DISTILS}, "gradient clip": {"clip_grad": 1e-7, "lr": 0.02},
    "weight clip": {"clip_body": 0.05, "clip_ends": 0.03, "lr": 0.01}, "slow average": {"ema": 0.9, "lr": 0.01},
    "average that begins fast": {"ema": 0.9, "ema_warmup": True, "lr": 0.01}}


@pytest.mark.parametrize("name", CASES)
def test_a_stage_is_its_arithmetic(name, tmp_path):
    settings = bare(**CASES[name])
    found = fit(start(), settings, draw, tmp_path, name="t", score=lambda _: {"psnr_rgb": 0.0}).model.state_dict()
    for key, value in by_hand(start(), settings).items():
        torch.testing.assert_close(found[key], value, rtol=2e-4, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_a_stage_keeps_the_best_or_the_last_average(tmp_path):
    scores = iter((1.0, 3.0, 2.0, 1.0))
    settings, score = bare(validate_every=2), lambda _: {"psnr_rgb": next(scores)}
    best = fit(start(), settings, draw, tmp_path / "a", name="t", score=score)
    last = fit(start(), bare(validate_every=2, keep="last"), draw, tmp_path / "a", name="t", score=score)
    assert (best.kept_step, best.best_step) == (4, 4)
    assert (last.kept_step, last.best_step, last.resumed_from) == (8, 4, 8)  # nothing is trained again
    weight = by_hand(start(), settings)["stem.weight"]
    torch.testing.assert_close(last.model.stem.weight, weight, rtol=2e-4, atol=2e-5)
    assert float((best.model.stem.weight.detach() - weight).abs().max()) > 1e-3
