"""The authors' published files: where they are at hand, and how they get there (audit, paper section 7).

Nothing of theirs is in this kit. They are found under PAPERLIB_ASSETS or in the cache, in a folder `aio_mai/`, or are
fetched from the authors' repository at one commit, each checked against its pinned SHA-256.
"""

from dataclasses import dataclass
from pathlib import Path

from paperlib.data.download import download
from paperlib.environment import assets_dir, cache_dir

URL = ("https://raw.githubusercontent.com/NguyenPhamPhuongNam/AIO_MAI/"
       "d6c2cc23886aa2607cdb4693ded60121e2813e16/student")
"""The repository's folder at the commit that the hashes are of."""
_RUN, _EXPORT = "runs_mobileone_32_8_ver2_debug_branch_5/balanced", "exports_moi/s3_auto_train"


@dataclass(frozen=True)
class Published:
    """One file of the authors': folder in their repository, bytes, SHA-256."""

    folder: str
    bytes: int
    sha256: str


PUBLISHED = {
    "ckpt_best_s2_deploy.pt": Published(
        _RUN, 339_359, "9de4de69b393fef321f9c4b97a2d4c3504ab44bb777ccc2ad8326de60e9561d4"),
    "ckpt_best_s3_qat_deploy.pt": Published(
        _RUN, 339_271, "7c10609bc430faf14168ac77a7d954d8280103f96e671a2e719e4838eb225c59"),
    "ckpt_best_s3_qat.pt": Published(
        _RUN, 1_437_031, "ef3247d77ebac7835ecfc9ee0e39e923b28c2cfe7331d600069a3dbac9334994"),
    "model_none.tflite": Published(
        f"{_EXPORT}/TFLite", 102_592, "a5d80778c3dc9f6a1759dfce4ff68af5d548e69ef638b037e19b28c8802c53e3"),
    "model.tflite": Published(
        f"{_EXPORT}/TFLite", 98_416, "4b1204193bf6764c548794431ffeb5f8bfb6f6a32b2f8d70d54e3aebed84d7c5"),
    "eval_div2k_full_report.json": Published(
        _EXPORT, 311_150, "f9b96ec46ae4c8b5b89a3bb78e9668bd02da51eb60e75462551b2f3060ab04de"),
    "metrics.csv": Published(_RUN, 209_925, "a1f34f6c66b922e273c4718880c22b29f0cdf151877bea9c74701b46b7b977e4"),
}
FILES = {
    "stage2_fp32": "ckpt_best_s2_deploy.pt", "stage3_weights_fp32": "ckpt_best_s3_qat_deploy.pt",
    "stage3_fakequant": "ckpt_best_s3_qat.pt", "dynamic_int8": "model_none.tflite", "fixed_int8": "model.tflite",
}
"""What is measured: name in the audit → file."""
REPORT, LOG = "eval_div2k_full_report.json", "metrics.csv"


def authors_folder() -> Path | None:
    """Where the authors' files are at hand: under PAPERLIB_ASSETS, else all of them in the cache; or None."""
    assets, cached = assets_dir(), cache_dir() / "aio_mai"
    if assets and (assets / "aio_mai").is_dir():
        return assets / "aio_mai"
    return cached if all((cached / name).is_file() for name in PUBLISHED) else None


def fetch_authors() -> Path:
    """The authors' files, downloaded into the cache (3 MB) where they are not at hand; gives their folder.

    Raises:
        UserError: a host cannot be reached, or gave other bytes than the pinned ones.
    """
    if found := authors_folder():
        return found
    folder = cache_dir() / "aio_mai"
    for name, file in PUBLISHED.items():
        if not (folder / name).is_file():
            download(f"{URL}/{file.folder}/{name}", folder / name, file.bytes, file.sha256)
    return folder
