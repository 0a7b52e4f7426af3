"""Which photographs train, validate and test (paper sections 4 and 6)."""

from importlib.util import find_spec
from pathlib import Path

from paperlib.data.div2k import div2k_sources
from paperlib.data.download import SETS
from paperlib.data.photographs import Pair, Pairs, Source, read_pairs
from paperlib.environment import data_dir
from paperlib.errors import UserError
from paperlib.files import user_path
from paperlib.settings import SCALE, DataSettings


def status(settings: DataSettings) -> list[dict[str, str]]:
    """One line for each of two splits: its photographs, or what to do where they are missing."""
    lines = []
    for split in ("train", "valid"):
        try:
            sources = split_sources(settings, split)
            state = f"{len(sources)} photographs"
            where = ", ".join(dict.fromkeys(str(source.hr.parent) for source in sources))
        except UserError as error:
            state, where = "missing", str(error)
        lines.append({"split": split, "state": state, "where": where})
    return lines


EMBEDDED_TRAIN = ("astronaut.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png",
                  "flower.jpg", "hubble_deep_field.jpg", "retina.jpg", "ihc.png")
EMBEDDED_VALID = ("coffee.png", "chelsea.png", "china.jpg")
"""Photographs in the scikit-image and scikit-learn wheels. The motorcycles are stereo twins: both
train."""


def embedded_path(name: str) -> Path:
    """A photograph inside the installed scikit-image or scikit-learn wheel."""
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        if spec and (path := Path(spec.origin).parent / folder / name).is_file():
            return path
    raise UserError(f"neither scikit-image nor scikit-learn has the photograph {name}. Install the "
                    "kit, in a clone: pip install '.[kit]'.")


def named_folder(name: str) -> Path:
    """An absolute folder, or one under PAPERLIB_DATA."""
    path, root = user_path(name), data_dir()
    if not path.is_absolute():
        if root is None:
            raise UserError(f"image folder {name!r}: PAPERLIB_DATA is unset. Set it to the folder "
                            f"that holds {name!r}, or give an absolute path.")
        path = root / name
    if not path.is_dir():
        fetch = f"Run `paperlib data fetch {name}`, correct" if name in SETS else "Correct"
        raise UserError(f"no image folder at {path}. {fetch} the data settings, or PAPERLIB_DATA.")
    return path


def split_sources(settings: DataSettings, split: str) -> list[Source]:
    """The photographs of a split, "train" or "valid", in a fixed order."""
    train = split == "train"
    if settings.source == "embedded":
        names = EMBEDDED_TRAIN if train else EMBEDDED_VALID
        sources = [Source(Path(name).stem, embedded_path(name)) for name in names]
    elif settings.source == "div2k":
        sources = div2k_sources(settings, split)
    else:
        folders = settings.train if train else settings.valid
        if not folders:
            raise UserError(f"data.source is 'folders' but data.{split} names none. Set it, for "
                            f"instance --set 'data.{split}=[\"/my/photographs\"]'.")
        sources = [Source(f"{Path(folder).name}/{source.name}", source.hr)
                   for folder in folders for source in read_pairs(named_folder(folder)).sources]
    limit = settings.max_train if train else settings.max_valid
    return sources[:limit] if limit else sources


def validation_pairs(settings: DataSettings) -> list[Pair]:
    """The validation photographs, decoded and kept in memory."""
    return list(Pairs(split_sources(settings, "valid"), settings.valid_crop))


def load_test_sets(settings: DataSettings) -> dict[str, Pairs]:
    """The test sets by name, each a folder with HR/ and LR_bicubic/X3/, decoded when used."""
    folders = [named_folder(name) for name in settings.tests]
    if len({folder.name for folder in folders}) < len(folders):
        raise UserError(f"two folders of data.tests have one name ({', '.join(settings.tests)}), by "
                        "which results are told apart. Rename one.")
    return {folder.name: read_pairs(folder / "HR", folder / "LR_bicubic" / f"X{SCALE}")
            for folder in folders}
