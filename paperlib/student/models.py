"""Networks by name, and their weights on disk: .safetensors, and the authors' files (section 1)."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import atomic_path, reading
from paperlib.settings import StudentSettings
from paperlib.student.baselines import ABPN, FSRCNN
from paperlib.student.graph import Graph, Node
from paperlib.student.network import Student


def deployment_graph(model: nn.Module) -> Graph:
    """The deployed graph of a fused model, with copies of its weights; it ends with the clip."""
    if getattr(model, "form", None) != "fused":
        raise ValueError("only a fused model has a deployment graph")
    nodes = model.nodes()
    shuffle = Node("shuffle", "depth_to_space", (nodes[-1].name,))
    return Graph((Node("input", "input"), *nodes, shuffle, Node("output", "clamp", ("shuffle",))))


def build_model(settings: StudentSettings, form: str = "expanded",
                clamp: bool = False) -> nn.Module:
    """The network that the settings name, with fresh weights; ABPN's only form is "fused"."""
    if settings.arch == "abpn":
        return ABPN(settings, clamp)
    return (FSRCNN if settings.arch == "fsrcnn" else Student)(settings, form, clamp)


def fuse_model(model: nn.Module, clamp: bool | None = None) -> nn.Module:
    """The deployable copy of a network; `clamp` ends it with a clip to 0..255 (None: as it is)."""
    twin = copy.deepcopy(model) if isinstance(model, ABPN) else model.fused()
    if clamp is not None:
        twin.clamp = clamp
    return twin


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a network's names and values, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_student(student: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Write weights as .safetensors; `metadata` stands beside architecture, form and clamp."""
    return write_weights(path, student.state_dict(), {
        "architecture": student.settings.model_dump(), "form": student.form,
        "clamp": student.clamp, **metadata})


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> Path:
    """Write tensors and what is to be said of them, atomically."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(kept, temporary, metadata={"paperlib": json.dumps(about)})
    return Path(path)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a .safetensors checkpoint of this kit."""
    with reading(path, "a checkpoint of this kit"), safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["paperlib"])
        StudentSettings.model_validate(about["architecture"])
        if about["form"] not in ("expanded", "fused", "qat"):
            raise ValueError(f"form {about['form']!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_finite(tensors)
        return tensors, about


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        unseen = name.endswith(("min_val", "max_val"))  # of observers: infinite at first
        if value.is_floating_point() and not (~value.isnan() if unseen else value.isfinite()).all():
            raise ValueError(f"{name} is not finite")


def load_model(path: str | Path) -> nn.Module:
    """A float student or baseline from a checkpoint of this kit, in evaluation mode."""
    tensors, about = read_weights(path)
    if about["form"] == "qat":
        raise UserError(f"{path} is quantised: `paperlib export` reads it. Name a float student.")
    with reading(path, "a checkpoint of this kit"):
        settings = StudentSettings.model_validate(about["architecture"])
        model = build_model(settings, about["form"], bool(about["clamp"]))
    return load_weights(model, tensors, path)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Load a file's state dict into a network, in place: all names, equal shapes, finite values;
    returns the network, in evaluation mode."""
    with reading(path, "a checkpoint of this network"):
        if odd := sorted(model.state_dict().keys() ^ tensors.keys()):
            raise ValueError(f"it differs at {', '.join(odd[:3])}")
        model.load_state_dict(tensors, strict=True)
        _check_finite(model.state_dict())
    return model.eval()


def load_pickle(path: str | Path, what: str) -> Any:
    """What a .pt or .pth file holds (`what`: it should be), tensors and plain values only; nothing
    in it is executed."""
    with reading(path, what):
        return torch.load(path, map_location="cpu", weights_only=True)


def key_from_published(published: str) -> str:
    """Our state-dict key for a key of the authors' checkpoints."""
    for old, new in (("conv_in.", "stem."), ("rep.", "body."), (".reparam.", ".conv."),
                     ("conv_out.", "head.")):
        published = published.replace(old, new)
    return published


def read_published(path: str | Path) -> Student:
    """The authors' fused student from one of their `*_deploy.pt` files, evaluation mode."""
    what = "one of the authors' deploy checkpoints"
    published = load_pickle(path, what)
    with reading(path, what):
        size = published["cfg"]
        student = Student(StudentSettings(channels=size["channels"], blocks=size["n_rep"]),
                          form="fused", clamp=True)
        tensors = {key_from_published(name): value for name, value in published["model"].items()}
    return load_weights(student, tensors, path)
