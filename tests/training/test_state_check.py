"""Training states with a valid hash and other content than this training's: refused, the file named, nothing cast."""

import math

import pytest
import torch

from paperlib.data.dataset import Batch
from paperlib.errors import UserError
from paperlib.settings import LossSettings, StageSettings, StudentSettings
from paperlib.student.network import Student
from paperlib.training.loop import fit
from paperlib.training.state import save_state

SMALL = StudentSettings(channels=4, blocks=1, branches=2)
STAGE = StageSettings(steps=6, batch=4, patch=8, lr=1e-3, decay="constant", validate_every=2, checkpoint_every=2,
                      loss=LossSettings(l1=1.0))


def draw(step: int, rank: int, world: int) -> Batch:
    lr = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(step), dtype=torch.uint8)
    return Batch(lr=lr, hr=lr.repeat_interleave(3, 2).repeat_interleave(3, 3), teacher=None, samples=[])


def train(folder, optimizer: str = "adam"):
    step = iter(range(100))
    fit(Student(SMALL), STAGE.model_copy(update={"optimizer": optimizer}), draw, folder, name="t",
        score=lambda _: {"psnr_rgb": float(next(step))}, quiet=True)


def tensors(part: str):
    """A state's tensors of a part, with the place of each."""
    return lambda state: state["optimizer"]["state"][0] if part == "optimizer" else state[part]


def cast(part: str, kind: torch.dtype, name: str = ""):
    def change(state):
        found = tensors(part)(state)
        key = name or next(iter(found))
        found[key] = found[key].to(kind)
    return change


def put(part: str, key: str, value):
    return lambda state: tensors(part)(state).__setitem__(key, value)


def field(name: str, value):
    return lambda state: state.__setitem__(name, value)


def group(name: str, value):
    return lambda state: state["optimizer"]["param_groups"][0].__setitem__(name, value)


CHANGES = {
    "live in half": cast("live", torch.float16), "live in double": cast("live", torch.float64),
    "live in bfloat16": cast("live", torch.bfloat16), "live in whole numbers": cast("live", torch.int32),
    "live complex": cast("live", torch.complex64), "average in double": cast("ema", torch.float64),
    "best in half": cast("best", torch.float16), "moment in half": cast("optimizer", torch.float16, "exp_avg"),
    "moment of another shape": put("optimizer", "exp_avg", torch.zeros(2)),
    "moment of no numbers": put("optimizer", "exp_avg_sq", torch.full((4, 3, 1, 1), math.nan)),
    "moment missing": lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
    "moment no tensor": put("optimizer", "exp_avg", "text"),
    "count of steps no number": put("optimizer", "step", torch.tensor(math.nan)),
    "sparse": lambda state: state["live"].update({key: value.to_sparse() for key, value in state["live"].items()}),
    "without values": lambda state: state["live"].update({key: value.to("meta") for key, value in
                                                          state["live"].items()}),
    "best without values": lambda state: state["best"].update({key: value.to("meta") for key, value in
                                                               state["best"].items()}),
    "one number for all": put("ema", "head.weight", torch.zeros(1).expand(27, 4, 3, 3)),
    "live no tensor": lambda state: state["live"].update({next(iter(state["live"])): "text"}),
    "best another network": field("best", {"w": torch.zeros(2)}), "best is text": field("best", "text"),
    "best not finite": lambda state: next(iter(state["best"].values())).fill_(math.inf),
    "best missing": field("best", None),
    "optimiser of two groups": lambda state: state["optimizer"]["param_groups"].append({"params": []}),
    "betas are text": group("betas", "text"), "another eps": group("eps", 1.0), "groups no list": lambda state: (
        state["optimizer"].update(param_groups=5)), "state no dict": lambda state: state["optimizer"].update(state=5),
    "another parameter": lambda state: state["optimizer"]["state"].update({99: {}}),
    "step from the future": field("step", 900), "step below 0": field("step", -1),
    "step is a float": field("step", 2.5),
    "step is yes": field("step", True), "best_step text": field("best_step", "2"),
    "best_psnr no number": field("best_psnr", math.nan), "seconds text": field("seconds", "long"),
    "seconds below 0": field("seconds", -5.0), "seconds no number": field("seconds", math.nan),
    "window a list": field("window", [1]), "window short": field("window", {"loss": [1.0]}),
    "history of numbers": field("history", [1, 2]), "history of text": field("history", [{"step": "two"}]),
    "settings with a tensor": lambda state: state["identity"].update(seed=torch.zeros(2)),
    "settings by number": lambda state: state["identity"].update({5: 5}),
    "moments gone": lambda state: state["optimizer"].update(state={}), "eps a tensor": group("eps", torch.zeros(2)),
    "history of nothing": field("history", [{}]),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A state of four of six steps, as it is in its file."""
    folder = tmp_path_factory.mktemp("training")
    train(folder)
    (path,) = folder.glob("state-000004-*.pt")
    return path.read_bytes()


def resumed(folder, content, optimizer: str = "adam"):
    """Train on from this content alone."""
    path = save_state(folder, 4, content)
    train(folder, optimizer)
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_other_content_is_refused_and_the_file_named(tmp_path, written, name):
    (tmp_path / "bytes").write_bytes(written)
    content = torch.load(tmp_path / "bytes", weights_only=True)
    CHANGES[name](content)
    with pytest.raises(UserError) as told:
        resumed(tmp_path, content)
    (path,) = tmp_path.glob("state-*.pt")
    message = str(told.value)
    assert message.startswith(str(path))
    assert "Delete it to go on from the state before it" in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_settings_of_any_length_make_one_short_line(tmp_path, written):
    (tmp_path / "bytes").write_bytes(written)
    content = torch.load(tmp_path / "bytes", weights_only=True)
    content["identity"] |= {"x" * 10_000: "y\n" * 100_000}
    with pytest.raises(UserError, match="with other settings") as told:
        resumed(tmp_path, content)
    assert len(str(told.value)) < len(str(tmp_path)) + 500


def test_the_content_itself_is_resumed(tmp_path, written):
    (tmp_path / "bytes").write_bytes(written)
    content = torch.load(tmp_path / "bytes", weights_only=True)
    resumed(tmp_path, content)
    assert any(tmp_path.glob("state-000006-*.pt"))


def side(moments: str, value):
    """The matrix of a kernel's first side replaced."""
    return lambda state: tensors("optimizer")(state)[moments].__setitem__(0, value)


SOAP_CHANGES = {
    "no eigenbasis": lambda state: tensors("optimizer")(state).pop("Q"),
    "one side less": lambda state: tensors("optimizer")(state)["GG"].pop(),
    "sides are a number": put("optimizer", "Q", 5), "sides are nothing": put("optimizer", "GG", None),
    "a side is text": side("Q", "text"), "another side": side("Q", torch.eye(3)),
    "no numbers": side("GG", torch.full((4, 4), math.nan)),
    "a bias with a basis": lambda state: state["optimizer"]["state"][1].__setitem__("Q", [torch.eye(4)]),
    "never a new basis": put("optimizer", "precondition_frequency", 0),
    "frequency is yes": put("optimizer", "precondition_frequency", True),
    "another memory": put("optimizer", "shampoo_beta", math.nan), "steps are text": group("step", "two"),
    "steps of another training": group("step", 3)}


@pytest.fixture(scope="module")
def written_by_soap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soap")
    train(folder, "soap")
    (path,) = folder.glob("state-000004-*.pt")
    return path.read_bytes()


@pytest.mark.parametrize("name", SOAP_CHANGES)
def test_other_content_of_soap_is_refused(tmp_path, written_by_soap, name):
    (tmp_path / "bytes").write_bytes(written_by_soap)
    content = torch.load(tmp_path / "bytes", weights_only=True)
    SOAP_CHANGES[name](content)
    with pytest.raises(UserError, match="is no training state of this network") as told:
        resumed(tmp_path, content, "soap")
    assert "\n" not in str(told.value)


def test_the_content_of_soap_itself_is_resumed(tmp_path, written_by_soap):
    (tmp_path / "bytes").write_bytes(written_by_soap)
    resumed(tmp_path, torch.load(tmp_path / "bytes", weights_only=True), "soap")
    assert any(tmp_path.glob("state-000006-*.pt"))


def test_a_state_of_another_optimiser_is_another_training(tmp_path, written):
    (tmp_path / "bytes").write_bytes(written)
    content = torch.load(tmp_path / "bytes", weights_only=True)
    with pytest.raises(UserError, match="optimizer: 'adam' → 'soap'"):
        resumed(tmp_path, content, "soap")
