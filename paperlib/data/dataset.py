"""Training patches: aligned random crops with flips and turns (paper section 4).

Each is a pure function of (seed, name, index): a training resumes from its step number alone, and
processes that share a batch draw what one process would.
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

from paperlib.data.div2k import is_paper_data
from paperlib.data.overlap import Overlap, check_overlaps
from paperlib.data.photographs import Pair, Pairs
from paperlib.data.pixel_store import PixelStore, open_store
from paperlib.data.sources import load_test_sets, split_sources, validation_pairs
from paperlib.data.text import text_patch
from paperlib.errors import UserError
from paperlib.settings import SCALE, DataSettings, Settings, StageSettings

COLOURS = tuple(permutations(range(3)))  # the first leaves the channels as they are


class Sample(NamedTuple):
    """Where one patch comes from: a photograph and a place in it, in LR pixels."""

    photograph: int
    top: int
    left: int
    turn: int  # 0..7: quarter turns, from 4 on after a flip
    colours: int = 0  # index into `COLOURS`
    text: bool = False  # rendered text takes the photograph's place, upright (`data.text`)


@dataclass
class Batch:
    """Patches of one step."""

    lr: Tensor  # uint8 (B, 3, p, p)
    hr: Tensor  # uint8 (B, 3, 3p, 3p)
    teacher: Tensor | None = None  # as `hr`: its output for the same crops, HR where one is text
    samples: list[Sample] = field(default_factory=list)


def _augment(patch: np.ndarray, sample: Sample) -> np.ndarray:
    """A square patch (p, p, 3) turned, flipped and recoloured as the sample says."""
    patch = patch[:, ::-1] if sample.turn >= 4 else patch
    patch = patch[..., COLOURS[sample.colours]] if sample.colours else patch
    return np.rot90(patch, sample.turn % 4)


def _stack(patches: list[np.ndarray]) -> Tensor:
    planes = [np.ascontiguousarray(patch.transpose(2, 0, 1)) for patch in patches]
    return torch.from_numpy(np.stack(planes))


def assemble(images: Iterable[Sequence[np.ndarray]], samples: Sequence[Sample],
             patch: int) -> Batch:
    """The batch of `samples`, cropped to `patch` LR pixels a side and turned; `images` has for each
    LR (h, w, 3), HR (3h, 3w, 3) and, where there is a teacher, its output (3h, 3w, 3)."""
    lr, hr, extra = [], [], []
    for (small, large, *outputs), sample in zip(images, samples, strict=True):
        top, left = sample.top, sample.left
        wide = tuple(slice(SCALE * first, SCALE * (first + patch)) for first in (top, left))
        lr.append(_augment(small[top : top + patch, left : left + patch], sample))
        hr.append(_augment(large[wide], sample))
        extra += [_augment(output[wide], sample) for output in outputs]
    return Batch(_stack(lr), _stack(hr), _stack(extra) if extra else None, list(samples))


def _random(name: str, stream: int = 0, index: int = 0) -> np.random.Generator:
    key = int.from_bytes(sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, index]))


class TrainSet:
    """Draws training patches from a `PixelStore`; photographs smaller than a patch are left out.

    Args:
        settings: `sampling` "image" shows every photograph once per pass, "area" in proportion to
            its pixels.
        seed, name: what the draw depends on besides the index.
        patch: LR pixels a side.
        permute_colours: red, green and blue change places at random.
        text: share of the patches that are rendered text (`data.text`), in the first `text_steps`
            steps; None: in all.
    """

    def __init__(self, store: PixelStore, settings: DataSettings, seed: int, name: str, patch: int,
                 permute_colours: bool = False, text: float = 0.0,
                 text_steps: int | None = None) -> None:
        self.store, self.settings, self.patch = store, settings, patch
        self.permute_colours, self.text, self.text_steps = permute_colours, text, text_steps
        sides = np.array(store.lr_shapes).min(1)
        self.usable = np.flatnonzero(sides >= patch)
        if not len(self.usable):
            raise UserError(f"no training photograph has {patch} LR pixels a side. The largest "
                            f"patch possible here is {sides.max()}: lower the stage's patch, or "
                            "add larger photographs.")
        self.key = f"{seed}/{name}"
        area = np.array(store.lr_shapes).prod(1)[self.usable]
        self._shares = np.cumsum(area / area.sum())
        self._order = lru_cache(maxsize=4)(
            lambda turn: _random(self.key, 1, turn).permutation(self.usable))

    def sample(self, index: int) -> Sample:
        """The sample with this index, counted from the start of the training."""
        random = _random(self.key, 0, index)
        if self.settings.sampling == "image":
            turn_of, place = divmod(index, len(self.usable))
            photograph = int(self._order(turn_of)[place])
        else:
            chosen = np.searchsorted(self._shares, random.random(), side="right")
            photograph = int(self.usable[min(int(chosen), len(self.usable) - 1)])
        height, width = self.store.lr_shapes[photograph]
        top = random.integers(height - self.patch + 1)
        left = random.integers(width - self.patch + 1)
        turn = int(random.integers(8))
        colours = int(random.integers(len(COLOURS))) if self.permute_colours else 0
        text = bool(self.text) and bool(random.random() < self.text)
        return Sample(photograph, int(top), int(left), turn, colours, text)

    def batch(self, step: int, batch: int, rank: int = 0, world: int = 1,
              teacher: str | None = None) -> Batch:
        """The patches of a step; `batch` counts those of all `world` processes, of which this is
        number `rank`, and `teacher` is the key of cached outputs to crop along."""
        if batch % world:
            raise UserError(f"a batch of {batch} cannot be shared by {world} processes. Choose a "
                            f"multiple of {world}.")
        pixels = [self.store.lr, self.store.hr]
        if teacher:
            pixels.append(self.store.teacher_outputs(teacher).__getitem__)
        share = batch // world
        start = step * batch + rank * share
        samples = [self.sample(index) for index in range(start, start + share)]
        if self.text_steps is not None and step >= self.text_steps:
            samples = [sample._replace(text=False) for sample in samples]
        images = ([of(sample.photograph) for of in pixels] for sample in samples)
        drawn = assemble(images, samples, self.patch)
        for place, sample in enumerate(samples):
            if sample.text:
                page = text_patch(self.patch, _random(self.key, 2, start + place))
                drawn.lr[place], drawn.hr[place] = (_stack([image])[0] for image in page)
                if drawn.teacher is not None:  # it never saw this page
                    drawn.teacher[place] = drawn.hr[place]
        return drawn


@dataclass
class Data:
    """What a run trains on and is measured on."""

    store: PixelStore  # training photographs
    valid: list[Pair]  # validation photographs; they decide which weights are best
    tests: dict[str, Sequence[Pair]]  # by name, never seen in training or selection
    shown: list[Pair]  # embedded photographs, for figures: they may be passed on
    settings: DataSettings
    overlaps: list[Overlap] = field(default_factory=list)  # of training with valid or tests
    is_paper_data: bool = False  # DIV2K, by its files (`div2k.is_paper_data`)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.settings,)  # another process is not sent the pixels

    @cached_property
    def valid_key(self) -> str:
        """Hash of the validation photographs' pixels, LR and HR, 16 hex digits."""
        return _pixels_key(self.valid)

    def keys(self) -> dict[str, str]:
        """Hashes of the pixels of every split, for records."""
        tests = {f"test pixels: {name}": _pixels_key(pairs) for name, pairs in self.tests.items()}
        return {"training pixels": self.store.key, "validation pixels": self.valid_key} | tests

    def inventory(self) -> pd.DataFrame:
        """One line a split: photographs and megapixels (HR)."""
        shapes = {"training": [self.store.hr(index).shape for index in range(len(self.store))],
                  "validation": [pair.hr.shape for pair in self.valid]}
        shapes |= {f"test: {name}": [pair.hr.shape for pair in pairs]
                   for name, pairs in self.tests.items()}
        return pd.DataFrame([{"split": split, "photographs": len(found),
                              "megapixels": round(sum(h * w for h, w, _ in found) / 1e6, 2)}
                             for split, found in shapes.items()])


def _pixels_key(pairs: Iterable[Pair]) -> str:
    digest = sha256()
    for pair in pairs:
        pair.add_to(digest)
    return digest.hexdigest()[:16]


def patches_of(data: Data, settings: Settings, stream: str, stage: StageSettings) -> TrainSet:
    """The patches of one training; `stream` decides which are drawn, and in which order."""
    return TrainSet(data.store, settings.data, settings.seed, stream, stage.patch,
                    stage.permute_colours, stage.text, round(stage.text_until * stage.steps))


def lr_batches(data: Data, settings: Settings, stream: str, stage: StageSettings) -> list[Tensor]:
    """LR patches for BN statistics: `recalibrate_batches` float tensors (B, 3, p, p) in 0..255."""
    patches = patches_of(data, settings, stream, stage)
    batches = (patches.batch(step, stage.batch) for step in range(stage.recalibrate_batches))
    return [batch.lr.float() for batch in batches]


def calibration(data: Data, settings: Settings, drawn: bool = False) -> list[np.ndarray]:
    """LR training photographs, uint8 (h, w, 3), for first ranges and post-training quantisation:
    `drawn` by the seed, which moves single images by half a decibel; else evenly spaced."""
    number = len(data.store)
    count = min(settings.quant.calibration_images, number)
    if drawn:
        random = _random(f"{settings.seed}/calibration")
        chosen = random.choice(number, count, replace=False)
    else:
        chosen = np.linspace(0, number - 1, count).round().astype(int)
    return [np.asarray(data.store.lr(int(index))) for index in chosen]


def open_data(settings: DataSettings) -> Data:
    """The training pixels (cached), validation pairs and test sets that the settings name."""
    store, valid, tests = open_store(settings), validation_pairs(settings), load_test_sets(settings)
    for why in store.left_out.values():
        print(f"left out of the training photographs: {why}", flush=True)
    embedded, div2k = (settings.source == source for source in ("embedded", "div2k"))
    shown = valid if embedded else validation_pairs(DataSettings(source="embedded"))
    own = split_sources(settings, "valid")
    paper = div2k and is_paper_data(split_sources(settings, "train"), own)
    if div2k and not paper:
        print("data.source is div2k, but these are not DIV2K's 800 and 100 photographs: nothing "
              "measured on them counts as on the paper's data", flush=True)
    sets = dict(tests)
    if not embedded and not paper:  # those splits are known to be disjoint
        sets = {"validation": Pairs(own, settings.valid_crop)} | sets
    found = check_overlaps(store, sets, list(tests)) if sets else []
    for overlap in found:
        print(f"trained on what is measured: {overlap}; leave it out of data.train, or say so",
              flush=True)
    return Data(store, valid, tests, shown, settings, found, paper)


@lru_cache(maxsize=1)
def _reopen(settings: DataSettings) -> Data:
    """For the jobs of a worker process, which share their data."""
    return open_data(settings)
