"""Claim: a training can be watched, by samples and by the exact likelihood of data kept out, on fixed seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion import EDMSDE, SDESampler, SolverError
from sde_diffusion.data.source import Stream
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.sampler.watch import HeldOutLikelihood, Previews
from sde_diffusion.training.callbacks import Event

MODEL = Gaussian(EDMSDE(0.01, 20.0), torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


def event(kind, step, model=MODEL):
    return Event(kind, step, 10, {}, model)


def quick(model):
    return SDESampler(model.sde, model, steps=10)


def test_previews_are_drawn_every_so_many_steps_and_at_the_end(tmp_path):
    watch = Previews(tmp_path / "there", every=4, n=3, seed=5, sampler=quick, undo=lambda x: x + 100)
    for i in range(1, 11):
        watch(event("step", i))
        watch(event("validation", i))
    watch(event("end", 10))
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {f"step_{i:06}.{kind}" for i in (4, 8, 10) for kind in ("npy", "png")}
    drawn = np.load(tmp_path / "there" / "step_000004.npy")
    assert np.array_equal(drawn, (quick(MODEL).sample(3, seed=5) + 100).numpy())
    assert np.array_equal(drawn, np.load(tmp_path / "there" / "step_000010.npy"))  # the same seeds
    Previews(tmp_path, every=10, sampler=quick)(event("end", 10))  # which was drawn after the step
    assert not list(tmp_path.glob("*.npy"))


def test_what_no_picture_shows_is_stored_as_numbers_alone(tmp_path):
    Previews(tmp_path, every=1, n=2, sampler=quick)(event("step", 1, Gaussian(EDMSDE(), torch.zeros(3), 1.0)))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001.npy"]


def test_a_model_that_is_too_young_to_be_sampled_ends_nothing(tmp_path):
    def fails(model):
        raise SolverError("non-finite")

    watch = Previews(tmp_path, every=1, sampler=fails)
    with pytest.warns(UserWarning, match="no samples after step 1: non-finite"):
        watch(event("step", 1))
    watch(event("step", 2))  # once is enough


@pytest.mark.parametrize("every", [None, 2])
def test_the_held_out_likelihood_is_added_to_the_metrics(every):
    watch = HeldOutLikelihood(X, every=every, batch_size=4)
    seen = []
    for i in range(1, 3):
        for kind in ("step", "validation"):
            now = event(kind, i)
            watch(now)
            seen += [(kind, i, now.metrics)] * bool(now.metrics)
    assert [(kind, i) for kind, i, _ in seen] == [("step", 2)] if every else [("validation", i) for i in (1, 2)]
    exact = -MODEL.data_log_prob(X)
    metrics = seen[0][2]
    assert metrics["held_out_nats"] == pytest.approx(float(exact.mean()), abs=1e-2)
    assert metrics["held_out_nats_error"] == pytest.approx(float(exact.std() / math.sqrt(6)), rel=0.02)


class Flow(Stream):
    """A stream."""


def test_unfit_arguments_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Flow, "__abstractmethods__", frozenset())
    flow: Any = Flow
    with pytest.raises(TypeError, match="Flow is a stream: give rows that have numbers, a tensor or a data set"):
        HeldOutLikelihood(flow())
    no: Any = "euler"
    with pytest.raises(TypeError, match="sampler must be a function of a model that answers its SDESampler, got 'eul"):
        Previews(tmp_path, every=1, sampler=no)
    with pytest.raises(TypeError, match="undo must be a function of samples, such as that of a scaling, got 'euler'"):
        Previews(tmp_path, every=1, undo=no)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        HeldOutLikelihood(X, every=0)
