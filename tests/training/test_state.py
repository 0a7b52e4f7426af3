"""Training states: atomic, self-verifying, and refused when the settings changed."""

import copy
from hashlib import sha256

import pytest
import torch
from torch import nn

from paperlib.errors import UserError
from paperlib.settings import StageSettings
from paperlib.training.state import KEEP, TrainingState, load_state, save_state

IDENTITY = {"stage.lr": 1e-3, "seed": 1}


def save(folder, step):
    return save_state(folder, step, {"step": step, "identity": IDENTITY, "live": {"w": torch.full((3,), float(step))}})


def test_newest_state_is_loaded_and_old_ones_go(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert load_state(tmp_path, IDENTITY)["step"] == 30
    assert len(list(tmp_path.glob("state-*"))) == KEEP == 2
    assert load_state(tmp_path / "empty", IDENTITY) is None
    with pytest.raises(UserError, match=r"stage\.lr: 0\.001 → 0\.002"):
        load_state(tmp_path, IDENTITY | {"stage.lr": 2e-3})


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2],
                                    lambda data: data[:-20] + b"x" * 20, lambda data: b""])
def test_damaged_newest_state_falls_back_and_says_so(tmp_path, damage):
    older = save(tmp_path, 10)
    newest = save(tmp_path, 20)
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_state(tmp_path, IDENTITY)["step"] == 10
    older.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="no sound one: the training starts anew"):
        assert load_state(tmp_path, IDENTITY) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, "text", {"step": 3, "identity": 5}])
def test_foreign_content_under_a_valid_hash_is_told(tmp_path, content):
    path = save_state(tmp_path, 3, content)
    with pytest.raises(UserError, match=f"{path.name} is not a training state"):
        load_state(tmp_path, IDENTITY)
    data = b"no pickle at all"
    path.unlink()
    (tmp_path / f"state-000004-{sha256(data).hexdigest()[:16]}.pt").write_bytes(data)
    with pytest.raises(UserError, match="is not a training state"):
        load_state(tmp_path, IDENTITY)


@pytest.mark.parametrize("change", [
    lambda state: state["live"].popitem(), lambda state: state["optimizer"].clear(),
    lambda state: state["optimizer"]["param_groups"][0]["params"].pop(),
    lambda state: state["ema"].update(more=torch.zeros(2)), lambda state: state.pop("best")])
def test_a_state_of_another_network_is_told(tmp_path, change):
    stage = StageSettings(steps=2, lr=1e-3, loss={"l1": 1.0})
    state = TrainingState.begin(nn.Linear(3, 2), stage)
    state.live(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    content = copy.deepcopy(state.saved({}, 1.0))
    TrainingState.begin(nn.Linear(3, 2), stage).restore(content, tmp_path)
    change(content)
    with pytest.raises(UserError, match="is not a state of this training"):
        TrainingState.begin(nn.Linear(3, 2), stage).restore(content, tmp_path)
