"""The bundled student: the files that `upscale` and `evaluate` use when no model is named.

Beside this module lie their hashes, their scores and a model card. It loads no torch: enlarging a
picture needs none.
"""

import json
from pathlib import Path

from paperlib.environment import assets_dir
from paperlib.errors import UserError
from paperlib.files import sha256_file, user_path

FOLDER = Path(__file__).parent
FILES = {"pretrained": "student_dynamic_int8.tflite",
         "pretrained-float": "student_float.safetensors", "pretrained-qat": "qat.safetensors"}
"""The INT8 student, the fused float student before QAT, and the INT8 file's quantised graph."""


def pretrained(name: str = "pretrained", folder: Path = FOLDER) -> Path:
    """The file of a shipped model of `FILES`; one that is not what was shipped is a UserError."""
    if name not in FILES:
        raise UserError(f"no shipped model {name!r}. There are {', '.join(FILES)}.")
    path, about = folder / FILES[name], folder / "weights.json"
    again = "Install paperlib again, or name a model of your own."
    if not path.is_file() or not about.is_file():
        raise UserError(f"no shipped student at {path}. {again}")
    wanted = json.loads(about.read_text(encoding="utf-8"))["files"][path.name]
    if (found := sha256_file(path)) != wanted:
        raise UserError(f"{path} is damaged: SHA-256 {found[:16]}…, not {wanted[:16]}…. {again}")
    return path


def start_file(name: str) -> Path:
    """The checkpoint that `quant.start` names: bundled, by absolute path, or under PAPERLIB_ASSETS.

    Notebooks and commands run in different folders: no other relative path means one file. Whether
    a file is there, its reader says.
    """
    if name == "pretrained-float":
        return pretrained(name)
    path = user_path(name)
    if path.is_absolute():
        return path
    if (assets := assets_dir()) is None:
        raise UserError(f"quant.start={name}: PAPERLIB_ASSETS is unset. Set it to the folder that "
                        f"holds {name}, give an absolute path, or pretrained-float.")
    return assets / path
