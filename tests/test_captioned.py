"""Claim: captioned digits are what their captions say: class, thickness of the strokes, place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from sde_diffusion.data import captioned_digits, digits
from sde_diffusion.data.captioned import NUMBERS, _distances, thinned


@pytest.fixture(scope="module")
def found() -> Any:
    pytest.importorskip("sklearn")
    return captioned_digits("test", copies=2, seed=0)


def test_a_caption_names_class_thickness_and_place(found):
    assert found.images.shape == (720, 1, 16, 16)
    assert float(found.images.min()) == -1
    assert float(found.images.max()) == 1
    assert torch.equal(found.labels, digits("test").labels.repeat(2))
    for caption, label, width, (right, down) in zip(
        found.captions, found.labels.tolist(), found.widths.tolist(), found.shifts.tolist(), strict=True
    ):
        words = caption.replace(",", "").split()
        assert NUMBERS[label] in words
        assert "thick" not in words or width > 1.7
        assert "thin" not in words or width < 1.7
        ways = {"left": -right, "right": right, "up": -down, "down": down}
        assert {way for way, far in ways.items() if far > 1} == set(words) & set(ways)
    said = [("thick" in text) + ("thin" in text) for text in found.captions]
    assert set(said) == {0, 1}
    assert abs(np.mean(said) - 0.8) < 4 * (0.16 / 720) ** 0.5


def test_the_centre_of_mass_lies_where_it_is_said_to(found):
    ink, points = (found.images[:, 0] + 1) / 2, torch.arange(16) - 7.5
    mass = ink.sum((1, 2))
    middle = torch.stack([(ink * points).sum((1, 2)), (ink * points[:, None]).sum((1, 2))], 1) / mass[:, None]
    assert float((middle - found.shifts).square().mean().sqrt()) < 0.15
    thick = found.widths > 1.7
    assert float(mass[thick].mean()) > 1.8 * float(mass[~thick].mean())  # 2.5 to 1.05, where strokes do not overlap


def test_a_seed_gives_the_same_again_and_another_draws_anew(found):
    again, other = captioned_digits("test", copies=2, seed=0), captioned_digits("test", seed=1)
    assert torch.equal(again.images, found.images)
    assert again.captions == found.captions
    assert not torch.equal(other.shifts, found.shifts[:360])
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'all'"):
        captioned_digits("all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        captioned_digits("test", copies=0)


def test_distances_are_those_of_scipy_up_to_their_reach():
    lines = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.02
    wanted = np.stack([distance_transform_edt(~one) for one in lines.numpy()])
    torch.testing.assert_close(_distances(lines), torch.from_numpy(wanted).float().clamp(max=8))


def test_thinning_leaves_the_line_in_the_middle_of_a_bar_and_the_loop_of_a_ring():
    bar = torch.zeros(1, 13, 30, dtype=torch.bool)
    bar[0, 4:9, 3:27] = True
    line = thinned(bar)[0]
    assert set(line.nonzero()[:, 0].tolist()) == {6}
    assert int(line.sum()) > 18
    y, x = torch.meshgrid(torch.arange(31) - 15, torch.arange(31) - 15, indexing="ij")
    far = (x.square() + y.square()).float().sqrt()
    ring = thinned(((far > 7) & (far < 12))[None])[0]
    assert float((far[ring] - 9.5).abs().max()) < 1.6
    assert bool((ring.int().cumsum(1)[15, 14:16] > 0).all())  # closed to the left of its middle
