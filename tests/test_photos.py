"""Patches of photographs: of any size, in two splits that share no pixel and have one law."""

import builtins

import pytest
import torch

from sde_diffusion import data
from sde_diffusion.data import photos


@pytest.fixture
def small(monkeypatch):
    """Two pictures that number their pixels, in place of the photographs."""
    pictures = [torch.arange(48 * 80.0).view(1, 48, 80), 10_000 + torch.arange(40 * 40.0).view(1, 40, 40)]
    monkeypatch.setattr(photos, "_pictures", lambda colour: [p.expand(3, -1, -1) if colour else p for p in pictures])


def test_the_splits_share_no_pixel_and_every_block_is_in_one_of_them(small):
    found = {split: data.photo_patches(4, split, stride=2) for split in ("train", "test")}
    pixels = {
        split: set(((each.images + 1) * 127.5).round().long().flatten().tolist()) for split, each in found.items()
    }
    assert not pixels["train"] & pixels["test"]
    assert len(pixels["train"] | pixels["test"]) == 48 * 80 + 40 * 40
    assert len(found["train"]) == 9 * (17 * 4)
    assert len(found["test"]) == 9 * 17
    assert found["train"].labels.unique().tolist() == [0, 1]


def test_a_patch_is_cut_as_it_lies_in_its_picture(small):
    patch = ((data.photo_patches(4, stride=2).images[1, 0] + 1) * 127.5).round()
    wanted = torch.arange(4.0)[:, None] * 80 + torch.arange(2.0, 6.0)
    torch.testing.assert_close(patch, wanted)
    assert data.photo_patches(4, colour=True).images.shape[1:] == (3, 4, 4)


@pytest.mark.slow
def test_real_pictures_are_all_there_and_grey_in_one_range():
    found = data.photo_patches(64, "test", stride=64)
    assert found.images.shape == (41 * 4, 1, 64, 64)
    assert found.labels.unique().tolist() == list(range(len(photos.PICTURES)))
    assert -1 <= float(found.images.min()) < -0.9
    assert 0.9 < float(found.images.max()) <= 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"split": "val"}, ValueError, "split must be 'train' or 'test', got 'val'"),
        ({"size": 0}, ValueError, "size must be"),
        ({"stride": 0.5}, TypeError, "stride must be"),
        ({"colour": 1}, TypeError, "colour must be True or False"),
        ({"size": 400}, ValueError, "size=400 leaves no patch in the train split"),
    ],
)
def test_other_arguments_are_refused(small, options, kind, message):
    with pytest.raises(kind, match=message):
        data.photo_patches(**options)


def test_without_the_extra_it_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'sde-diffusion\[examples\]'"):
        data.photo_patches()
