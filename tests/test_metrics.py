"""Distances between samples agree with closed forms, and the digits classifier is good enough to measure with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from sde_diffusion.data import digits
from sde_diffusion.demo.classifier import DigitsClassifier, train_classifier
from sde_diffusion.metrics import energy_distance, frechet_distance, sliced_wasserstein

METRICS = [sliced_wasserstein, energy_distance, frechet_distance]


def normal(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_symmetric_flattens_samples_and_grows_with_a_shift(metric):
    x, y = normal(60, 2, 3), normal(40, 2, 3, seed=1)
    assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9)
    assert metric(x, y) == metric(x.flatten(1), y.flatten(1))
    assert metric(x, y + 0.5) < metric(x, y + 1) < metric(x, y + 2)
    assert isinstance(metric(x.float(), y.float()), float)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("x", "y", "error", "text"),
    [
        (normal(5, 2), normal(5, 3), ValueError, r"one event shape, got \(2,\) and \(3,\)"),
        (normal(1, 2), normal(5, 2), ValueError, r"first sample must have shape \(n, \*\) with n >= 2, got \(1, 2\)"),
        (normal(5, 2), normal(5), ValueError, r"second sample must have shape \(n, \*\) with n >= 2, got \(5,\)"),
        (normal(5, 0), normal(5, 0), ValueError, r"first sample must have .* got \(5, 0\)"),
        (normal(5, 2), normal(5, 2) / 0, ValueError, "second sample has NaN or infinity in 5 of its 5 rows"),
        (
            normal(5, 2).long(),
            normal(5, 2),
            TypeError,
            r"first sample must be floating point, got torch.int64. Use .flo",
        ),
        (normal(5, 2), np.ones((5, 2)), TypeError, "second sample must be a tensor, got ndarray. Use torch.as_tensor"),
    ],
)
def test_every_metric_refuses_bad_samples_with_a_sentence(metric, x, y, error, text):
    with pytest.raises(error, match=text):
        metric(x, y)


def test_sliced_wasserstein_between_shifted_copies_is_the_length_of_the_shift_along_the_directions():
    x = normal(50, 1)
    assert sliced_wasserstein(x, x + 3) == pytest.approx(3, abs=1e-12)
    x, v = normal(50, 4), torch.tensor([1.0, -2.0, 0.0, 2.0], dtype=torch.float64)
    n = 4096  # E (theta v)^2 = |v|^2 / 4, and Var (theta v)^2 = |v|^4 (3 / 24 - 1 / 16)
    squared, se = sliced_wasserstein(x, x + v, projections=n) ** 2, 9 * math.sqrt(1 / 16 / n)
    print(f"{squared:.4f}, wanted 2.25, SE {se:.4f}")
    assert abs(squared - 9 / 4) < 4 * se


@pytest.mark.parametrize(("n", "m"), [(6, 4), (7, 5), (3, 12)])
def test_sliced_wasserstein_of_unequal_sizes_is_that_of_the_repeated_samples(n, m):
    x, y = normal(n, 3), normal(m, 3, seed=1)
    both = math.lcm(n, m)
    repeated = sliced_wasserstein(x.repeat(both // n, 1), y.repeat(both // m, 1))
    assert sliced_wasserstein(x, y) == pytest.approx(repeated, rel=1e-12)


def test_sliced_wasserstein_of_equal_sizes_matches_sorted_projections():
    x, y = normal(40, 1).float(), normal(40, 1, seed=1).float()
    oracle = np.sqrt(np.mean((np.sort(x.numpy(), 0).astype(float) - np.sort(y.numpy(), 0)) ** 2))
    assert sliced_wasserstein(x, y) == pytest.approx(float(oracle), rel=1e-6)
    assert sliced_wasserstein(x, x[torch.randperm(40, generator=torch.Generator().manual_seed(0))]) == 0


def test_sliced_wasserstein_sees_one_point_thrown_far_away():
    x, y = normal(2000, 2), normal(2000, 2, seed=1)
    floor = sliced_wasserstein(x, y)
    y[0] = 100
    assert sliced_wasserstein(x, y) > 10 * floor


def test_the_directions_follow_the_seed_and_there_must_be_one():
    x, y = normal(30, 3), normal(30, 3, seed=1)
    assert sliced_wasserstein(x, y, seed=1) == sliced_wasserstein(x, y, seed=1) != sliced_wasserstein(x, y, seed=2)
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        sliced_wasserstein(x, y, projections=0)


def folded(mean: float, std: float) -> float:
    """E|N(mean, std^2)|."""
    density = math.exp(-(mean**2) / 2 / std**2)
    return std * math.sqrt(2 / math.pi) * density + mean * math.erf(mean / std / math.sqrt(2))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_energy_distance_is_unbiased_between_shifted_gaussians(shift):
    truth = 2 * folded(shift, math.sqrt(2)) - 2 * folded(0, math.sqrt(2))
    draws = np.array(
        [energy_distance(normal(40, 1, seed=2 * i), normal(25, 1, seed=2 * i + 1) + shift) for i in range(300)]
    )
    se = draws.std() / math.sqrt(300)
    print(f"shift {shift}: {draws.mean():.5f}, wanted {truth:.5f}, SE {se:.5f}")
    assert abs(draws.mean() - truth) < 4 * se
    if not shift:
        assert (draws < 0).any()


def test_pairs_are_summed_in_blocks_without_a_seam():
    x, y = normal(2100, 2), normal(2050, 2, seed=1)
    whole = 2 * torch.cdist(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()
    assert energy_distance(x, y) == pytest.approx(float(whole), abs=1e-12)


def oracle_frechet(x: Tensor, y: Tensor) -> float:
    a, b = x.numpy(), y.numpy()
    ca, cb = np.cov(a.T), np.cov(b.T)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb))))


def test_frechet_distance_matches_scipys_matrix_square_root():
    mix = normal(6, 6, seed=5)
    x, y = normal(200, 6) @ mix, 0.5 + normal(150, 6, seed=1)
    assert frechet_distance(x, y) == pytest.approx(oracle_frechet(x, y), rel=1e-10)


def test_frechet_distance_of_a_scaled_and_shifted_copy_is_closed_form():
    x = normal(100, 5) @ normal(5, 5, seed=3)
    centred = x - x.mean(0)
    trace = float(centred.square().sum() / 99)
    assert frechet_distance(centred, 3 * centred + 2) == pytest.approx(4 * trace + 5 * 4, rel=1e-10)


def test_frechet_distance_is_stable_when_a_covariance_is_rank_deficient():
    x, y = normal(200, 3), 1 + 2 * normal(150, 3, seed=1)
    rotation = torch.linalg.qr(normal(64, 64, seed=2)).Q
    wide = [torch.cat([z, torch.zeros(len(z), 61, dtype=z.dtype)], 1) @ rotation for z in (x, y)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(x, y), rel=1e-7)
    few = normal(10, 64)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(torch.ones(4, 3), torch.zeros(4, 3)) == pytest.approx(3)


@pytest.mark.slow
def test_the_classifier_reads_96_percent_of_the_test_digits_from_64_features():
    train, test = digits("train", seed=0), digits("test", seed=0)
    seen: list[tuple[int, float]] = []
    net = train_classifier(train.images, train.labels, steps=150, progress=lambda step, loss: seen.append((step, loss)))
    accuracy = net.accuracy(test.images, test.labels)
    print(f"accuracy {accuracy:.4f}, SE {math.sqrt(accuracy * (1 - accuracy) / 360):.4f}")
    assert accuracy >= 0.96
    assert not net.training
    assert [step for step, _ in seen] == list(range(1, 151))
    assert seen[-1][1] < 0.2
    with torch.no_grad():
        features = [net.features(split.images) for split in (train, test)]
        noise = net.features(torch.rand(360, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert features[0].shape == (1437, 64)
    floor = frechet_distance(*features)
    print(f"Frechet distance, train against test: {floor:.2f}")
    assert frechet_distance(noise, features[1]) > 10 * floor


def test_training_the_classifier_is_deterministic_and_leaves_the_global_random_state_alone():
    test = digits("test", seed=0)
    before = torch.get_rng_state()
    a, b = (train_classifier(test.images, test.labels, seed=3, steps=5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a(test.images), b(test.images))
    other = train_classifier(test.images, test.labels, seed=4, steps=5)
    assert not torch.equal(a(test.images), other(test.images))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda x, y: train_classifier(x, y.float()),
            TypeError,
            r"labels must hold integers, the numbers of classes, got torch.float32. Use labels",
        ),
        (lambda x, y: train_classifier(x, y[:3]), ValueError, r"Wanted x \(N, 1, 8, 8\) and labels .* and \(3,\)"),
        (lambda x, y: train_classifier(x[:0], y[:0]), ValueError, r"with N >= 1, got \(0, 1, 8, 8\)"),
        (lambda x, y: train_classifier(x, y - 1), ValueError, "labels must be 0, 1, ..., got -1"),
        (lambda x, y: train_classifier(x, y, steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda x, y: train_classifier(x, y, batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (
            lambda x, y: train_classifier(x[..., :4], y),
            ValueError,
            r"\(B, 1, 8, 8\), got \(4, 1, 8, 4\). Try x.reshape",
        ),
        (lambda x, y: DigitsClassifier()(x.flatten(1)), ValueError, r"x must have shape \(B, 1, 8, 8\), got \(4, 64\)"),
        (
            lambda x, y: DigitsClassifier().accuracy(x, y[:, None]),
            ValueError,
            r"shape \(4,\), one per image, got \(4, 1\)",
        ),
    ],
)
def test_the_classifier_refuses_bad_input_with_a_sentence(call, error, text):
    with pytest.raises(error, match=text):
        call(torch.zeros(4, 1, 8, 8), torch.arange(4))
