"""What a checkpoint must be before anything is built from it: types, ranges, sizes, finite weights (section 1)."""

import json
import math
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from paperlib.errors import UserError
from paperlib.settings import StudentSettings

Step = tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], Annotated[int, Field(ge=-128, le=127)]]
"""Scale and zero point."""


class About(BaseModel):
    """The metadata of a .safetensors checkpoint; what callers add beside these fields is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    architecture: StudentSettings
    form: Literal["expanded", "fused", "qat"]
    clamp: bool
    quantiser: Literal["paper", "tflite"] | None = None
    nodes: list[Any] | None = None
    grids: dict[str, Step] | None = None

    @model_validator(mode="after")
    def _quantised_is_whole(self) -> Self:
        missing = [name for name in ("quantiser", "nodes", "grids") if getattr(self, name) is None]
        if self.form == "qat" and missing:
            raise ValueError(f"a quantised checkpoint needs {', '.join(missing)}")
        return self


def read_about(text: str, path: Path) -> dict[str, Any]:
    """Metadata from their JSON, checked.

    Raises:
        UserError: not JSON, or a field that is missing, of another type or out of range.
    """
    try:
        about = json.loads(text)
        if isinstance(about, dict) and about.get("form") == "training":  # the name before version 0.2
            about["form"] = "expanded"
        About.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise UserError(f"{path} is no checkpoint of this version of the kit: {place}: "
                        f"{first['msg'].removeprefix('Value error, ')}. Name another file, or train that stage again."
                        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has damaged metadata ({type(error).__name__}). Name another file, or train that stage "
                        "again.") from error
    return about


def open_pickle(file: Path | BinaryIO) -> Any:
    """What a .pt or .pth file holds, tensors and plain values only; nothing in it is executed.

    PyTorch would unpack an archive of any size, and warns of much that is refused here afterwards.

    Raises:
        Exception: whatever torch raises for a damaged or foreign one; ValueError for an archive that would unpack to
            more bytes than it has.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            archive.fp.seek(0, 2)
            if packed or sum(entry.file_size for entry in entries) > archive.fp.tell():
                raise ValueError("packed, as PyTorch packs none")
    if not isinstance(file, Path):
        file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def plain(value: Tensor) -> bool:
    """Whether a tensor has each of its numbers in memory of its own, as weights do."""
    return (value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def check_tensors(tensors: Any, path: Path) -> dict[str, Tensor]:
    """A state dict, when it is one: names to dense tensors of finite numbers (observers may have seen nothing yet).

    Raises:
        UserError: it is not, or has values that are no numbers.
    """
    if not isinstance(tensors, dict) or not tensors or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()):
        raise UserError(f"{path} holds no weights by name. Name the authors' *_deploy.pt, ckpt_best_s3_qat.pt, "
                        "or a .safetensors file of ours.")
    for name, value in tensors.items():
        if not plain(value):
            raise UserError(f"{path} has weights that are no dense tensor in memory, in {name[:80]}. Name another "
                            "file.")
        unseen = name.endswith(("min_val", "max_val"))
        if value.is_floating_point() and not (~value.isnan() if unseen else value.isfinite()).all():
            raise UserError(f"{path} has weights that are no numbers, in {name[:80]}. Train that stage again, or name "
                            "another file.")
    return tensors


def check_size(model: torch.nn.Module, tensors: Iterable[Tensor], path: Path) -> None:
    """Refuse an architecture with more weights than the file holds, before memory is taken for it.

    Args:
        model: the network on PyTorch's "meta" device, which has shapes only.

    Raises:
        UserError: it has.
    """
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(math.prod(tensor.shape) for tensor in tensors)
    if wanted > held:
        raise UserError(f"{path} does not fit the architecture that it names: {wanted:,} weights, and it holds "
                        f"{held:,}. Name a matching file.")
