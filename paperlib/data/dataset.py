"""Training patches: aligned random crops with flips and turns, each a pure function of (seed, name, index) (section 4).

Nothing is kept between steps, so a training resumes from its step number alone, and several processes that share a
batch draw exactly the samples that one process would.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paperlib.data.overlap import Overlap, check_overlaps
from paperlib.data.photographs import Pair, Pairs
from paperlib.data.pixel_store import PixelStore, open_store
from paperlib.data.splits import split_sources, test_sets, validation_pairs
from paperlib.data.text import text_patch
from paperlib.errors import UserError
from paperlib.settings import SCALE, DataSettings, Settings, StageSettings

COLOURS = tuple(permutations(range(3)))
"""The six orders of the colour channels; the first leaves them as they are."""


class Sample(NamedTuple):
    """Where one patch comes from: a photograph, a place in LR pixels, one of eight symmetries, an order of colours; or
    rendered text instead."""

    photograph: int
    top: int
    left: int
    turn: int
    """0..7 counts quarter turns, from 4 on after a flip."""
    colours: int = 0
    """Index into `COLOURS`."""
    text: bool = False
    """Letters take the photograph's place, upright (`data.text`)."""


@dataclass
class Batch:
    """Patches of one step."""

    lr: Tensor
    """uint8 (B, 3, p, p)."""
    hr: Tensor
    """uint8 (B, 3, 3p, 3p)."""
    teacher: Tensor | None = None
    """uint8 (B, 3, 3p, 3p), the teacher's cached output for the same crops, HR where a patch is text; or None."""
    samples: list[Sample] = field(default_factory=list)


def _augment(patch: np.ndarray, sample: Sample) -> np.ndarray:
    """A square patch (p, p, 3) turned, flipped and recoloured as the sample says."""
    patch = patch[:, ::-1] if sample.turn >= 4 else patch
    patch = patch[..., COLOURS[sample.colours]] if sample.colours else patch
    return np.rot90(patch, sample.turn % 4)


def _stack(patches: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([np.ascontiguousarray(patch.transpose(2, 0, 1)) for patch in patches]))


def assemble(
    images: Iterable[Sequence[np.ndarray]], samples: Sequence[Sample], patch: int,
) -> Batch:
    """The batch of `samples`, cropped and turned.

    Args:
        images: for each sample LR (h, w, 3), HR (3h, 3w, 3) and, where there is a teacher, its output (3h, 3w, 3).
        patch: LR pixels a side.
    """
    lr, hr, extra = [], [], []
    for (small, large, *outputs), sample in zip(images, samples, strict=True):
        top, left = sample.top, sample.left
        wide = (slice(SCALE * top, SCALE * (top + patch)), slice(SCALE * left, SCALE * (left + patch)))
        lr.append(_augment(small[top : top + patch, left : left + patch], sample))
        hr.append(_augment(large[wide], sample))
        extra += [_augment(output[wide], sample) for output in outputs]
    return Batch(_stack(lr), _stack(hr), _stack(extra) if extra else None, list(samples))


class TrainSet:
    """Draws training patches from a `PixelStore`.

    Args:
        store: decoded training photographs.
        settings: `sampling` "image" shows every photograph once per pass, "area" in proportion to its pixels.
        seed, name: what the draw depends on besides the index; two trainings with other names see other patches.
        patch: LR pixels a side; smaller photographs are left out (`left_out` counts them).
        permute_colours: red, green and blue change places at random.
        text: share of the patches that are rendered text (`data.text`), in the first `text_steps` steps; None: in all.

    Raises:
        UserError: no photograph is large enough.
    """

    def __init__(self, store: PixelStore, settings: DataSettings, seed: int, name: str, patch: int,
                 permute_colours: bool = False, text: float = 0.0, text_steps: int | None = None) -> None:
        self.store, self.settings, self.patch = store, settings, patch
        self.permute_colours, self.text, self.text_steps = permute_colours, text, text_steps
        sides = np.array([min(shape) for shape in store.lr_shapes])
        self.usable = np.flatnonzero(sides >= patch)
        self.left_out = len(sides) - len(self.usable)
        if not len(self.usable):
            raise UserError(f"no training photograph has {patch} LR pixels a side. The largest patch possible here is "
                            f"{sides.max()}: lower the stage's patch, or add larger photographs.")
        self.key = int.from_bytes(sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
        area = np.array([height * width for height, width in store.lr_shapes])[self.usable]
        self._shares = np.cumsum(area / area.sum())
        self._order = lru_cache(maxsize=4)(self._permutation)

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, stream, index]))

    def _permutation(self, number: int) -> np.ndarray:
        """Order of the photographs in pass `number`."""
        return self._generator(1, number).permutation(self.usable)

    def sample(self, index: int) -> Sample:
        """The sample with this index, counted from the start of the training."""
        random = self._generator(0, index)
        if self.settings.sampling == "image":
            turn_of, place = divmod(index, len(self.usable))
            photograph = int(self._order(turn_of)[place])
        else:
            chosen = np.searchsorted(self._shares, random.random(), side="right")
            photograph = int(self.usable[min(int(chosen), len(self.usable) - 1)])
        height, width = self.store.lr_shapes[photograph]
        top, left = random.integers(height - self.patch + 1), random.integers(width - self.patch + 1)
        turn = int(random.integers(8))
        colours = int(random.integers(len(COLOURS))) if self.permute_colours else 0
        text = bool(self.text) and bool(random.random() < self.text)
        return Sample(photograph, int(top), int(left), turn, colours, text)

    def batch(self, step: int, batch: int, rank: int = 0, world: int = 1, teacher: str | None = None) -> Batch:
        """The patches of a step.

        Args:
            batch: samples in the step over all processes; a multiple of `world`.
            rank, world: which process this is, and how many share the batch.
            teacher: key of cached teacher outputs to crop along.

        Raises:
            UserError: the batch cannot be shared evenly, or the teacher's outputs are not there.
        """
        if batch % world:
            raise UserError(f"a batch of {batch} cannot be shared by {world} processes. Choose a multiple of {world}.")
        outputs = self.store.teacher_outputs(teacher) if teacher else None
        share = batch // world
        start = step * batch + rank * share
        samples = [self.sample(index) for index in range(start, start + share)]
        if self.text_steps is not None and step >= self.text_steps:
            samples = [sample._replace(text=False) for sample in samples]
        images = ((self.store.lr(index), self.store.hr(index), *([outputs[index]] if outputs is not None else []))
                  for index, *_ in samples)
        drawn = assemble(images, samples, self.patch)
        for place, sample in enumerate(samples):
            if sample.text:
                images = text_patch(self.patch, self._generator(2, start + place))
                drawn.lr[place], drawn.hr[place] = (_stack([image])[0] for image in images)
                if drawn.teacher is not None:  # it never saw this page
                    drawn.teacher[place] = drawn.hr[place]
        return drawn


@dataclass
class Data:
    """What a run trains on and is measured on."""

    store: PixelStore
    """Training photographs, decoded."""
    valid: list[Pair]
    """Validation photographs; they decide which weights are best."""
    tests: dict[str, Sequence[Pair]]
    """Test sets by name, never seen in training or selection; none in the offline profiles."""
    shown: list[Pair]
    """Photographs for figures: embedded ones, which may be passed on with the results, whatever is measured."""
    settings: DataSettings
    """Where they came from: another process opens them again instead of being sent the pixels."""
    overlaps: list[Overlap] = field(default_factory=list)
    """Training photographs that show what a validation photograph or a test image shows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.settings,)

    @cached_property
    def valid_key(self) -> str:
        """Hash of the validation photographs' pixels, LR and HR, 16 hex digits."""
        return _pixels_key(self.valid)

    def keys(self) -> dict[str, str]:
        """Hashes of the pixels of every split, for records: what was trained on, chosen on and tested on."""
        return {"training pixels": self.store.key, "validation pixels": self.valid_key} | {
            f"test pixels: {name}": _pixels_key(pairs) for name, pairs in self.tests.items()}

    def inventory(self) -> pd.DataFrame:
        """One line a split: photographs and megapixels (HR)."""
        lines = [("training", [self.store.hr_shape(index) for index in range(len(self.store))])]
        lines += [("validation", [pair.hr.shape for pair in self.valid])]
        lines += [(f"test: {name}", [pair.hr.shape for pair in pairs]) for name, pairs in self.tests.items()]
        return pd.DataFrame([{"split": split, "photographs": len(shapes),
                              "megapixels": round(sum(h * w for h, w, _ in shapes) / 1e6, 2)}
                             for split, shapes in lines])


def _pixels_key(pairs: Iterable[Pair]) -> str:
    digest = sha256()
    for pair in pairs:
        pair.add_to(digest)
    return digest.hexdigest()[:16]


def patches_of(data: Data, settings: Settings, stream: str, stage: StageSettings) -> TrainSet:
    """The patches of one training; `stream` decides which are drawn, and in which order."""
    return TrainSet(data.store, settings.data, settings.seed, stream, stage.patch, stage.permute_colours,
                    stage.text, round(stage.text_until * stage.steps))


def lr_batches(data: Data, settings: Settings, stream: str, stage: StageSettings) -> list[Tensor]:
    """LR patches for BN statistics: `recalibrate_batches` float tensors (B, 3, p, p) in 0..255."""
    patches = patches_of(data, settings, stream, stage)
    return [patches.batch(step, stage.batch).lr.float() for step in range(stage.recalibrate_batches)]


def calibration(data: Data, settings: Settings) -> list[np.ndarray]:
    """LR training photographs (uint8, (h, w, 3)) for first ranges and for post-training quantisation."""
    count = min(settings.quant.calibration_images, len(data.store))
    chosen = np.linspace(0, len(data.store) - 1, count).round().astype(int)
    return [np.asarray(data.store.lr(int(index))) for index in chosen]


def drawn_calibration(data: Data, settings: Settings) -> list[np.ndarray]:
    """Like `calibration`, but drawn by the seed: which photographs it is moves single images by half a decibel."""
    count = min(settings.quant.calibration_images, len(data.store))
    key = int.from_bytes(sha256(f"{settings.seed}/calibration".encode()).digest()[:8], "little")
    chosen = np.random.Generator(np.random.Philox(key=key)).choice(len(data.store), count, replace=False)
    return [np.asarray(data.store.lr(int(index))) for index in chosen]


def open_data(settings: DataSettings) -> Data:
    """The training pixels (decoded once, cached), validation pairs and test sets that the settings name."""
    valid = validation_pairs(settings)
    shown = valid if settings.source == "embedded" else validation_pairs(DataSettings(source="embedded"))
    store = open_store(settings)
    for why in store.left_out.values():
        print(f"left out of the training photographs: {why}", flush=True)
    tests = test_sets(settings)
    # embedded photographs are known; DIV2K's own splits are disjoint
    own = {"validation": Pairs(split_sources(settings, "valid"), settings.valid_crop)}
    sets = (own if settings.source == "folders" else {}) | tests
    found = check_overlaps(store, sets, list(tests)) if sets else []
    for overlap in found:
        print(f"trained on what is measured: {overlap}; leave it out of data.train, or say so", flush=True)
    return Data(store, valid, tests, shown, settings, found)


@lru_cache(maxsize=1)
def _reopen(settings: DataSettings) -> Data:
    """For the jobs of a worker process, which share one grid's data."""
    return open_data(settings)
