"""Networks by name, and their weights on disk: ours as .safetensors, the authors' as published (section 1)."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import atomic_path, explain
from paperlib.settings import StudentSettings
from paperlib.student.baselines import ABPN, FSRCNN, STUDENTS, _abpn_nodes, _fsrcnn_nodes
from paperlib.student.checkpoint import check_size, check_tensors, open_pickle, read_about
from paperlib.student.graph import Graph, Node
from paperlib.student.network import Student, _student_nodes, fuse


def deployment_graph(model: nn.Module) -> Graph:
    """The deployed graph of a fused model, with copies of its weights; it always ends with the clip to 0..255.

    Raises:
        ValueError: the model is not in form "fused".
    """
    if getattr(model, "form", None) != "fused":
        raise ValueError(f"only a fused model has a deployment graph; this one is {getattr(model, 'form', model)!r}")
    readers = {Student: _student_nodes, FSRCNN: _fsrcnn_nodes, ABPN: _abpn_nodes}
    nodes = readers[type(model)](model)
    shuffle = Node("shuffle", "depth_to_space", (nodes[-1].name,))
    return Graph((Node("input", "input"), *nodes, shuffle, Node("output", "clamp", ("shuffle",))))


def build_model(settings: StudentSettings, form: str = "expanded", clamp: bool = False) -> nn.Module:
    """The network that the settings name, with fresh weights; ABPN's only form is "fused"."""
    if settings.arch in STUDENTS:
        return Student(settings, form, clamp)
    return FSRCNN(settings, form, clamp) if settings.arch == "fsrcnn" else ABPN(settings, clamp)


def fuse_model(model: nn.Module, clamp: bool | None = None) -> nn.Module:
    """The deployable copy of any network; one without anything to fold (a quantised one, a teacher) is just copied.

    Args:
        clamp: end with a clip to 0..255 (student and baselines); None keeps the network's own choice.
    """
    if isinstance(model, Student):
        return fuse(model, clamp)
    twin = model.fused() if isinstance(model, FSRCNN) else copy.deepcopy(model)
    if clamp is not None:
        twin.clamp = clamp
    return twin


def load_model(path: str | Path) -> nn.Module:
    """A student or baseline from a checkpoint of this kit, in the form it was saved in, evaluation mode.

    Raises:
        UserError: missing or damaged file, a quantised checkpoint, or weights that do not fit.
    """
    tensors, about = read_weights(path)
    settings = StudentSettings.model_validate(about["architecture"])
    if about["form"] not in ("expanded", "fused"):
        raise UserError(f"{path} is in form {about['form']!r}: quantised weights are read by `paperlib export`. "
                        "Name a student in training or fused form.")
    model = build_model(settings, about["form"], about["clamp"])
    load_weights(model, tensors, path)
    return model.eval()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a network's names and values, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_student(student: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Write weights as .safetensors with metadata (architecture, form, clamp and what the caller adds), atomically."""
    path = Path(path)
    about = {"architecture": student.settings.model_dump(), "form": student.form, "clamp": student.clamp, **metadata}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"paperlib": json.dumps(about)})
    return path


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a .safetensors checkpoint written by paperlib.

    Raises:
        UserError: missing, damaged, not written by paperlib, with metadata that are none of this version, with fewer
            weights than the architecture has, or with weights that are no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}. Run the notebook that trains it, or name another file.")
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("paperlib")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise explain(error, path, "read") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error}). Name a checkpoint of this kit; "
                        "if this is one and damaged, train that stage again.") from error
    if about is None:
        raise UserError(f"{path} was not written by paperlib: its metadata name no architecture. Name another file.")
    metadata = read_about(about, path)
    if metadata["form"] == "qat":  # such a file says itself what it is made of
        return check_tensors(tensors, path), metadata
    settings = StudentSettings.model_validate(metadata["architecture"])
    with torch.device("meta"):
        model = build_model(settings, "expanded" if metadata["form"] == "expanded" else "fused")
    check_size(model, tensors.values(), path)
    return check_tensors(tensors, path), metadata


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Load a state dict strictly; a mismatch is a `UserError` that names the first differing keys.

    A type other than the network's is one too: PyTorch would cast it silently.
    """
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:
            given, own = (str(tensor.dtype).removeprefix("torch.") for tensor in (tensors[name], value))
            raise UserError(f"{path} does not fit the architecture ({name} is {given}, not {own}). Name a matching "
                            "file.")
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        wanted, given = set(model.state_dict()), set(tensors)
        first = ", ".join(name[:80] for name in sorted(wanted ^ given)[:3]) or str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the architecture (differs at: {first}). Name a matching file.") from error


def key_from_published(published: str) -> str:
    """Our state-dict key for a key of the authors' checkpoints."""
    for old, new in (("conv_in.", "stem."), ("rep.", "body."), (".reparam.", ".conv."), ("conv_out.", "head.")):
        published = published.replace(old, new)
    return published


def load_pickle(path: Path) -> Any:
    """What a .pt file holds, tensors and plain values only; nothing in it is executed.

    Raises:
        UserError: there is no such file, or it may not be read.
        Exception: whatever torch raises for a damaged or foreign one.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}. Name an existing file.")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise explain(error, path, "read") from error
    return open_pickle(path)


def one_line(error: Exception) -> str:
    """An exception's kind and first words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:160]}"


def read_published(path: str | Path) -> Student:
    """The authors' fused student from one of their `*_deploy.pt` files (weights only, strict), evaluation mode.

    Raises:
        UserError: missing or damaged file, or another layout.
    """
    path = Path(path)
    try:
        published = dict(load_pickle(path))
        tensors = published["model"]
        settings = StudentSettings(channels=published["cfg"]["channels"], blocks=published["cfg"]["n_rep"])
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign pickle
        raise UserError(f"{path} is not one of the authors' deploy checkpoints ({one_line(error)}). "
                        "Name a *_deploy.pt file of theirs or a .safetensors of ours.") from error
    check_tensors(tensors, path)
    with torch.device("meta"):
        check_size(Student(settings, form="fused"), tensors.values(), path)
    renamed = {key_from_published(name): tensor for name, tensor in tensors.items()}
    student = Student(settings, form="fused", clamp=True)
    load_weights(student, renamed, path)
    return student.eval()
