"""The ×3 student: extract – refine – upsample, all in LR space (paper section 1).

Input and output are RGB in 0..255. f0 = stem(x); f = body(f0) + f0; sr = PixelShuffle(head(f)). In the training form
the body consists of re-parameterisable blocks; `fuse` gives the deployable form with 82,683 parameters.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paperlib.blocks import FusedConv, FusedRepDW, RepConv, RepDW, collapsed_forward, fuse_block, mobileone
from paperlib.config import StudentSettings
from paperlib.errors import UserError
from paperlib.files import atomic_path

SCALE = 3
PUBLISHED_PARAMETERS = 82_683


def _training_block(settings: StudentSettings) -> nn.Module:
    if settings.arch == "mobileone":
        return mobileone(settings.channels, settings.branches)
    return {"repconv": RepConv, "repdw": RepDW}[settings.arch](settings.channels)


def _fused_block(settings: StudentSettings) -> nn.Module:
    return FusedRepDW(settings.channels) if settings.arch == "repdw" else FusedConv(settings.channels)


def bilinear_kernel(scale: int = SCALE) -> Tensor:
    """Head weights (3·scale², 3, 3, 3) that upscale RGB bilinearly when followed by PixelShuffle(scale).

    Sub-pixel i of a row lies (i − (scale−1)/2)/scale LR pixels from its LR pixel's centre.
    """
    offsets = (torch.arange(scale) - (scale - 1) / 2) / scale
    taps = torch.stack([(-offsets).clamp(min=0), 1 - offsets.abs(), offsets.clamp(min=0)], dim=1)  # (scale, 3)
    phases = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale * scale, 3, 3)
    kernel = torch.zeros(3, scale * scale, 3, 3, 3)
    for channel in range(3):
        kernel[channel, :, channel] = phases
    return kernel.reshape(3 * scale * scale, 3, 3, 3)


class Student(nn.Module):
    """The student network; (B, 3, H, W) in 0..255 → (B, 3, 3H, 3W), around 0..255.

    Args:
        settings: architecture (`mobileone`, `repconv` or `repdw`) and its size.
        form: "training" (branches and BN), "collapsed" (the same weights, BN statistics frozen, each block computed as
            one convolution) or "fused" (plain convolutions).
        clamp: end with min(ReLU(y), 255); the paper clamps from QAT on, not in FP32 training.
    """

    def __init__(self, settings: StudentSettings, form: str = "training", clamp: bool = False) -> None:
        super().__init__()
        self.settings, self.form, self.clamp = settings, form, clamp
        make = _fused_block if form == "fused" else _training_block
        self.stem = nn.Conv2d(3, settings.channels, 3, padding=1)
        self.body = nn.ModuleList(make(settings) for _ in range(settings.blocks))
        self.head = nn.Conv2d(settings.channels, 3 * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)
        if settings.init == "bilinear":
            self._start_bilinear()

    @torch.no_grad()
    def _start_bilinear(self) -> None:
        """Stem channels 0–2 pass RGB on; the head upscales those bilinearly and ignores the rest."""
        self.stem.weight[:3] = 0
        self.stem.weight[:3, :, 1, 1] = torch.eye(3)
        self.stem.bias[:3] = 0
        self.head.weight.zero_()
        self.head.weight[:, :3] = bilinear_kernel()
        self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)  # (B, C, H, W)
        features = first
        for block in self.body:
            features = collapsed_forward(block, features) if self.form == "collapsed" else block(features)
        sr = self.shuffle(self.head(features + first))  # (B, 3, 3H, 3W)
        return torch.clamp(F.relu(sr), max=255.0) if self.clamp else sr


def with_form(student: Student, form: str) -> Student:
    """A copy with the same training-form weights whose blocks run "training" or "collapsed".

    Raises:
        ValueError: the student is fused, or `form` is neither.
    """
    if student.form == "fused" or form not in ("training", "collapsed"):
        raise ValueError(f"cannot turn form {student.form!r} into {form!r}")
    twin = copy.deepcopy(student)
    twin.form = form
    return twin


def fuse(student: Student, clamp: bool | None = None) -> Student:
    """The deployable copy: every block one convolution (RepDW: two); the input is not changed.

    Args:
        clamp: end with min(ReLU(y), 255); None keeps the student's own choice.
    """
    clamp = student.clamp if clamp is None else clamp
    fused = copy.deepcopy(student)
    fused.clamp = clamp
    if student.form != "fused":
        fused.body = nn.ModuleList(fuse_block(block) for block in student.body)
        fused.form = "fused"
    return fused


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())


def save_student(student: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Write weights as .safetensors with metadata (architecture, form, clamp and what the caller adds), atomically."""
    path = Path(path)
    about = {"architecture": student.settings.model_dump(), "form": student.form, "clamp": student.clamp, **metadata}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"paperlib": json.dumps(about)})
    return path


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a .safetensors checkpoint written by paperlib.

    Raises:
        UserError: missing, damaged, or not written by paperlib.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}. Run the notebook that trains it, or name another file.")
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("paperlib")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error}). Name a checkpoint of this kit; "
                        "if this is one and damaged, train that stage again.") from error
    if about is None:
        raise UserError(f"{path} was not written by paperlib: its metadata name no architecture. Name another file.")
    return tensors, json.loads(about)


def load_student(path: str | Path) -> Student:
    """A student from its checkpoint, in the form it was saved in, evaluation mode.

    Raises:
        UserError: missing or damaged file, or weights that do not fit the architecture named in it.
    """
    tensors, about = read_checkpoint(path)
    settings = StudentSettings.model_validate(about["architecture"])
    if settings.arch not in ("mobileone", "repconv", "repdw") or about["form"] not in ("training", "fused"):
        raise UserError(f"{path} holds a {settings.arch} in form {about['form']!r}, not a student. Name another file.")
    student = Student(settings, about["form"], about["clamp"])
    load_weights(student, tensors, path)
    return student.eval()


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Load a state dict strictly; a mismatch is a `UserError` that names the first differing keys."""
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        wanted, given = set(model.state_dict()), set(tensors)
        first = ", ".join(sorted(wanted ^ given)[:3]) or str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the architecture (differs at: {first}). Name a matching file.") from error


def our_name(published: str) -> str:
    """Our state-dict key for a key of the authors' checkpoints."""
    for old, new in (("conv_in.", "stem."), ("rep.", "body."), (".reparam.", ".conv."), ("conv_out.", "head.")):
        published = published.replace(old, new)
    return published


def read_published(path: str | Path) -> Student:
    """The authors' fused student from one of their `*_deploy.pt` files (weights only, strict), evaluation mode.

    Raises:
        UserError: missing or damaged file, or another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}. Name an existing file.")
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
        tensors = published["model"]
        settings = StudentSettings(channels=published["cfg"]["channels"], blocks=published["cfg"]["n_rep"])
    except Exception as error:  # torch raises many kinds for a damaged or foreign pickle
        raise UserError(f"{path} is not one of the authors' deploy checkpoints ({type(error).__name__}: {error}). "
                        "Name a *_deploy.pt file of theirs or a .safetensors of ours.") from error
    renamed = {our_name(name): tensor for name, tensor in tensors.items()}
    student = Student(settings, form="fused", clamp=True)
    load_weights(student, renamed, path)
    return student.eval()
