"""Rendered text in the place of photographs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paperlib.data import text
from paperlib.data.dataset import TrainSet, patches_of
from paperlib.data.pixel_store import open_store, write_pixels
from paperlib.data.resize import bicubic_downscale
from paperlib.profiles import load_settings
from paperlib.settings import DataSettings

FOUR = DataSettings(source="embedded", max_train=4, train_crop=120)


def test_the_share_is_kept_and_photographs_stay_the_ones_that_would_be_drawn(cache):
    store = open_store(FOUR)
    some, none = TrainSet(store, FOUR, 1, "s", 12, text=0.25), TrainSet(store, FOUR, 1, "s", 12)
    lettered = []
    for step in range(100):
        one, other = some.batch(step, 8), none.batch(step, 8)
        for place, sample in enumerate(one.samples):
            assert sample[:5] == other.samples[place][:5]
            same = torch.equal(one.lr[place], other.lr[place]) and torch.equal(one.hr[place], other.hr[place])
            assert same != sample.text
            lettered.append(sample.text)
    assert np.mean(lettered) == pytest.approx(0.25, abs=0.06)
    again = TrainSet(store, FOUR, 1, "s", 12, text=0.25).batch(99, 8)
    assert torch.equal(again.hr, one.hr)


def test_text_ends_after_its_steps_and_nothing_else_changes(cache):
    store = open_store(FOUR)
    early = TrainSet(store, FOUR, 1, "s", 12, text=0.5, text_steps=3)
    always, never = TrainSet(store, FOUR, 1, "s", 12, text=0.5), TrainSet(store, FOUR, 1, "s", 12)
    for step in range(6):
        drawn, other = early.batch(step, 16), (always if step < 3 else never).batch(step, 16)
        assert torch.equal(drawn.hr, other.hr)
        assert torch.equal(drawn.lr, other.lr)
        assert any(sample.text for sample in drawn.samples) == (step < 3)
    settings = load_settings("smoke", {"stage2.text_until": 0.5})
    assert patches_of(SimpleNamespace(store=store), settings, "s", settings.stage2).text_steps == 2


def test_lr_is_the_reduced_page():
    for seed in range(12):
        lr, hr = text.text_patch(16, np.random.default_rng(seed))
        page = text.render_text(3 * 20, np.random.default_rng(seed))
        assert np.array_equal(hr, page[6:-6, 6:-6])
        assert np.array_equal(lr, bicubic_downscale(page)[2:-2, 2:-2])
        assert np.array_equal(lr[2:-2, 2:-2], bicubic_downscale(np.pad(hr, ((9, 9), (9, 9), (0, 0))))[5:-5, 5:-5])


def test_pages_hold_letters_of_many_colours():
    pages = [text.render_text(120, np.random.default_rng(seed)) for seed in range(80)]
    shades = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in pages]
    assert min(shades) > 2
    assert np.median(shades) > 20  # the edges of letters are smoothed
    papers = [tuple(np.median(image.reshape(-1, 3), axis=0).astype(int)) for image in pages]
    assert 0.1 < papers.count((255, 255, 255)) / len(pages) < 0.45
    assert len(set(papers)) > 30


def test_the_cached_teacher_of_a_page_is_hr(cache):
    store = open_store(FOUR)
    for index in range(len(store)):
        write_pixels(store.output_path("t", index), 255 - store.hr(index))
    batch = TrainSet(store, FOUR, 1, "s", 12, text=0.5).batch(0, 32, teacher="t")
    for place, sample in enumerate(batch.samples):
        hr = batch.hr[place]
        assert torch.equal(batch.teacher[place], hr if sample.text else 255 - hr)
