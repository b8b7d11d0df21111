"""Claim: seen through another process, a rule is the same one around the model seen so, at all levels that it knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, SDESampler
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.base import Denoiser, On, Wrapper
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.guidance import (
    AutoGuided,
    ClassifierGuided,
    Clipped,
    Compositional,
    Guided,
    Mask,
    Optimised,
    Posterior,
    Projected,
    Rescaled,
    Reward,
    Thresholded,
    Tilted,
    Within,
)

F64 = torch.float64
VP = VPSDE()
MODEL = Gaussian(VP, torch.tensor([0.2, -0.1], dtype=F64), 0.8)
WEAK = Gaussian(VP, torch.tensor([0.3, 0.1], dtype=F64), 1.1)
FIRST = Mask(torch.tensor([True, False]))
ONE = Posterior(MODEL, FIRST, 0.3, name="context")
X = torch.tensor([[0.4, -0.9], [1.1, 0.2], [-0.3, 0.5]], dtype=F64)
Y = torch.tensor([0.7], dtype=F64)


def up(x: torch.Tensor, *_: Any, **given: Any) -> torch.Tensor:
    return x[:, 1]


RULES: dict[str, tuple[Denoiser, Any]] = {
    "autoguided": (AutoGuided(MODEL, WEAK, 2.0, low=0.1), {}),
    "rescaled": (AutoGuided(MODEL, WEAK, 2.0, rule=Rescaled()), {}),
    "projected": (AutoGuided(MODEL, WEAK, lambda level: 1.5 if level > 1 else 2.0, rule=Projected(0.5, 1.0)), {}),
    "guided": (Guided(Posterior(MODEL, FIRST, 0.3), 2.0, unconditional=WEAK), {"y": Y}),
    "tilted": (Tilted([MODEL, WEAK], [2.0, -1.0]), {}),
    "reward": (Reward(MODEL, up), {}),
    "within": (Within(MODEL, FIRST, low=0.0), {}),
    "clipped": (Clipped(MODEL), {}),
    "thresholded": (Thresholded(MODEL, 0.8), {}),
    "posterior": (Posterior(MODEL, FIRST, 0.3), {"y": Y}),
    "compositional": (Compositional(ONE, 2, prior=MODEL), {"context": torch.stack([Y, -Y])}),
    "of each other": (Clipped(Reward(AutoGuided(MODEL, WEAK, 2.0), up)), {}),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_seen_through_another_process_answers_as_before_and_works_up_to_pure_noise(name: str) -> None:
    model, cond = RULES[name]
    for sde in (FlowSDE(), EDMSDE()):
        seen = model.on(sde)
        assert type(seen) is type(model)
        assert (seen.sde, model.sde) == (sde, VP)
        (t,) = sde.time_of(torch.tensor([0.3], dtype=F64)).tolist()
        found, wanted = seen(X, t, **cond), On(model, sde)(X, t, **cond)
        torch.testing.assert_close(found.data, wanted.data, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.noise, wanted.noise, rtol=1e-10, atol=1e-10)
    flow = model.on(FlowSDE())  # which begins at alpha = 0, where VPSDE has no time
    assert SDESampler(flow.sde, flow, steps=3).sample(2, seed=0, **cond).isfinite().all()
    back = flow.on(VP)(X, 0.5, **cond).data
    torch.testing.assert_close(back, model(X, 0.5, **cond).data, rtol=1e-9, atol=1e-9)


class Timed(Wrapper):
    """A rule of the times of its process."""

    def predict(self, x: torch.Tensor, at: Any, **cond: object) -> Prediction:
        p = self.inner.predict(x, at, **cond)
        return Prediction(lambda: p.data * (1 + at.t), lambda: p.noise)


@pytest.mark.parametrize(
    ("model", "cond"),
    [
        (ClassifierGuided(MODEL, up, names=("y",)), {"y": Y}),
        (AutoGuided(MODEL, WEAK, 2.0, rule=Optimised()), {}),
        (Timed(MODEL), {}),
    ],
    ids=["classifier", "optimised", "timed"],
)
def test_what_asks_the_process_is_seen_as_a_whole_at_the_levels_that_its_own_has(model: Denoiser, cond: Any) -> None:
    seen = model.on(FlowSDE())
    assert isinstance(seen, On)
    at, t = VP.level(0.5, X), float(FlowSDE().time_of(torch.tensor([VP.level(0.5, X).lam], dtype=F64)))
    scale = float(FlowSDE().level(t, X).alpha / at.alpha)
    torch.testing.assert_close(seen(scale * X, t, **cond).data, model(X, 0.5, **cond).data, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="asked at noise level sigma/alpha = inf, but the model was made for VPSDE"):
        seen(X, 1.0, **cond)
