"""A picture that is trained on and measured is found: copies, crops and other scales; what only looks alike is not."""

import numpy as np
import pytest
from PIL import Image

from paperlib.data import overlap
from paperlib.data.dataset import open_data
from paperlib.data.images import read_rgb
from paperlib.data.overlap import overlaps
from paperlib.data.resize import bicubic_downscale
from paperlib.data.sources import EMBEDDED_TRAIN, EMBEDDED_VALID, embedded_path
from paperlib.errors import UserError
from paperlib.settings import DataSettings


def lr_of(picture: Image.Image) -> np.ndarray:
    width, height = (length // 3 * 3 for length in picture.size)
    return bicubic_downscale(np.asarray(picture.crop((0, 0, width, height))))


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize([round(factor * length) for length in picture.size], Image.Resampling.BICUBIC)


def planted(picture: Image.Image) -> dict[str, Image.Image]:
    """The picture at 0.72 of its size, a crop of that, and the other way round as a part of a larger photograph."""
    small = scaled(picture, 0.72)
    width, height = small.size
    large = Image.fromarray(read_rgb(embedded_path("rocket.jpg"))).resize((700, 640))
    large.paste(scaled(picture, 1 / 0.72), (90, 60))
    return {"small": small, "crop": small.crop((10, 12, width - 14, height - 16)), "part": large}


def test_embedded_photographs_share_nothing():
    train, valid = ({name: lr_of(Image.fromarray(read_rgb(embedded_path(name)))) for name in names}
                    for names in (EMBEDDED_TRAIN, EMBEDDED_VALID))
    assert overlaps(train.items(), valid) == []
    assert overlaps(train.items(), {}) == []
    twins = overlaps(valid.items(), valid)
    assert [(one.photograph, one.image) for one in twins] == [(name, name) for name in EMBEDDED_VALID]


@pytest.mark.parametrize("how", ["small", "crop", "part"])
def test_an_embedded_picture_is_found_at_another_scale(how):
    coffee = Image.fromarray(read_rgb(embedded_path("coffee.png"))).crop((150, 40, 450, 380))
    (found,) = overlaps([(how, lr_of(planted(coffee)[how]))], {"coffee": lr_of(coffee)})
    assert found.correlation > 0.85
    assert f"{how} shows what coffee shows" in str(found)


def test_set5s_woman_is_told_when_the_data_are_opened(data_root, tmp_path, cache, monkeypatch, capsys):
    (hr,) = sorted((data_root / "benchmark" / "Set5" / "HR").glob("*005*"))
    train = tmp_path / "photographs"
    train.mkdir()
    for name, picture in planted(Image.open(hr).convert("RGB")).items():
        picture.save(train / f"{name}.png")
    Image.fromarray(read_rgb(embedded_path("coffee.png"))).save(train / "coffee.png")
    settings = DataSettings(source="folders", train=(str(train),), valid=(str(embedded_path("coffee.png").parent),),
                            max_valid=1, tests=("benchmark/Set5",))
    found = {one.photograph: one.image for one in open_data(settings).overlaps}
    assert found == {f"photographs/{name}": f"Set5/{hr.stem}" for name in ("small", "crop", "part")}
    assert capsys.readouterr().out.count("trained on what is measured: photographs/") == 3
    with monkeypatch.context() as patch:
        patch.setattr(overlap, "overlaps", lambda *_: pytest.fail("searched again"))
        assert len(open_data(settings).overlaps) == 3
        with pytest.raises(pytest.fail.Exception, match="again"):  # other parts of the images
            open_data(settings.model_copy(update={"valid_crop": 60}))
    Image.open(hr).convert("RGB").save(train / "copy.png")
    (tmp_path / "more" / "photographs").mkdir(parents=True)
    Image.fromarray(read_rgb(embedded_path("rocket.jpg"))).save(tmp_path / "more" / "photographs" / "copy.png")
    for more in ((), (str(tmp_path / "more" / "photographs"),)):  # two photographs of one name
        with pytest.raises(UserError, match=r"photographs/copy is the test image Set5/.*Leave it out"):
            open_data(settings.model_copy(update={"train": (*more, str(train))}))
    with pytest.raises(UserError, match="have one name"):
        open_data(settings.model_copy(update={"tests": ("benchmark/Set5", str(data_root / "benchmark" / "Set5"))}))
